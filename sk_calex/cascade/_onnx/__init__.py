"""A cascade as ONNX graphs and numbers: written with torch, served without it."""
