// The Python module _C: importing it registers the CPU kernels; it carries the facts of its build.
// Only Python's stable ABI is used, so that one library is for all Pythons.
#ifdef Py_LIMITED_API  // torch's build sets it to the oldest Python that torch is for
#undef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>
#include <torch/headeronly/version.h>

#include <string>
#include <utility>

#define AUSAM_STRING_(x) #x
#define AUSAM_STRING(x) AUSAM_STRING_(x)

// Which schemas the kernels are for: backend.py looks for it in the file, as to load the library is
// to register them. Exported, so that no linker drops it.
extern Py_EXPORTED_SYMBOL const char ausam_schemas[];
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

int add_facts(PyObject* module) {
  std::string target = std::to_string((TORCH_TARGET_VERSION) >> 56) + "." +
                       std::to_string((TORCH_TARGET_VERSION) >> 48 & 0xff);
  const std::pair<const char*, const char*> facts[] = {
      {"compiler", compiler()},
      {"built_with_torch", TORCH_VERSION},
      {"built_with_cuda", AUSAM_BUILT_WITH_CUDA},  // the toolkit's version
      {"cuda_archs", AUSAM_CUDA_ARCHS},
      {"no_cuda", AUSAM_NO_CUDA},  // why the CUDA kernels were not built
      {"target_torch", target.c_str()},
  };
  for (auto [name, value] : facts) {
    if (PyModule_AddStringConstant(module, name, value)) return -1;
  }
  return 0;
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(add_facts)}, {0, nullptr}};
PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", "CPU kernels of ausam_ext", 0, nullptr, slots};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModuleDef_Init(&definition); }
