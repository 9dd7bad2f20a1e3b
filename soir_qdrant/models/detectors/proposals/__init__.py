"""The kind `proposals`: a detector that needs no training, on the features of any encoder.

Superpixels are merged into a tree of regions (`regions`); each is scored by how its features stand out
(`saliency`, `scoring`). It finds less than a trained head, and stands in until there is one: for the profile
dinov3, and where the kind `embedded` has no head for the encoder. See docs/detector.md.
"""
