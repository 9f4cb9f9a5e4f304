"""The fused ops, one folder each: the public function (checks, docs, gradient), reference.py, and kernels where they exist."""
