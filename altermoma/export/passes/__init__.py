"""Graph passes, one per file. Each takes a `ModelProto` and gives a new one; none changes what the graph computes
beyond rounding."""
