// The Python module _C: importing it registers the CPU kernels; it carries the facts of its build.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#define AUSAM_STRING_(x) #x
#define AUSAM_STRING(x) AUSAM_STRING_(x)

// Which schemas the kernels are for: backend.py looks for it in the file, as to load the library is
// to register them. Exported, so that no linker drops it.
extern PYBIND11_EXPORT const char ausam_schemas[];
const char ausam_schemas[] = AUSAM_SCHEMAS;

namespace {

const char* compiler() {
#if defined(__clang__)
  return "clang " AUSAM_STRING(__clang_major__) "." AUSAM_STRING(__clang_minor__);
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " AUSAM_STRING(_MSC_FULL_VER);
#else
  return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of ausam_ext";
  m.attr("compiler") = compiler();
  m.attr("built_with_torch") = TORCH_VERSION;
  m.attr("built_with_cuda") = AUSAM_BUILT_WITH_CUDA;  // the toolkit's version
  m.attr("cuda_archs") = AUSAM_CUDA_ARCHS;
  m.attr("no_cuda") = AUSAM_NO_CUDA;  // why the CUDA kernels were not built
  m.attr("target_torch") = std::to_string((TORCH_TARGET_VERSION) >> 56) + "." +
                           std::to_string((TORCH_TARGET_VERSION) >> 48 & 0xff);
}
