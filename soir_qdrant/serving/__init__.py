"""Serving the models elsewhere: ONNX files, NVIDIA Triton. See docs/production.md."""
