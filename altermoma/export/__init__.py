"""From a torch model to checked ONNX graphs: stage contracts, export, graph passes, lint and parity."""
