"""The starter backbone: small weights pretrained on images drawn by formula, shipped with the project."""
