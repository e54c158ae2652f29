# The compiled module: csrc/module.cpp.
compiler: str
built_with_torch: str
target_torch: str
