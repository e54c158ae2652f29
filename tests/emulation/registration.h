// Included before every launcher: registers the emulated kernels where no real ones can be. Whatever
// of torch names CUDA otherwise has to be included first.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#define CUDA EMULATION_KEY
