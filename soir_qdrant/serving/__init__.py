"""Serving the models elsewhere: ONNX files, NVIDIA Triton. See docs/how-to/production.md."""
