"""The WKV operators as CUDA kernels: compiled at first use, launched on torch's stream.

None of it has run on a GPU yet; ``docs/kernels.md`` says what was checked without one.
"""
