// What the launchers ask of a torch with CUDA. Bound within the library (-Bsymbolic), so that torch
// itself keeps its own.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

// What the operators are registered under.
EXPORT const char* emulation_key() { return TEXT(EMULATION_KEY); }

EXPORT const char* emulation_error();
extern "C" int32_t aoti_torch_get_numel(void* tensor, int64_t* numel);

// The tensors of the emulation are those of the CPU: Tensor::is_cuda() is true for them, unless a
// test wants to see what the launchers do with a scalar that is not on the device.
static bool scalars_on_host = false;
EXPORT void emulation_set_scalars_on_host(bool value) { scalars_on_host = value; }
EXPORT int32_t aoti_torch_device_type_cuda() { return scalars_on_host ? 1 : 0; }

// Which device a tensor is on: one for all, unless a test asks for two, where it is by the
// number of elements, so that what belongs together stays so.
static bool two_devices = false;
EXPORT void emulation_set_two_devices(bool value) { two_devices = value; }
EXPORT int32_t aoti_torch_get_device_index(void* tensor, int32_t* index) {
  int64_t elements = 0;
  aoti_torch_get_numel(tensor, &elements);
  *index = two_devices && elements % 2;
  return 0;
}

EXPORT int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

EXPORT int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}
EXPORT int32_t aoti_torch_delete_device_guard(void*) { return 0; }

EXPORT int32_t torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool,
                                        char** message) {
  std::string text = std::string("CUDA error (emulated): ") + emulation_error();
  *message = error == 0 ? nullptr : strdup(text.c_str());
  return 0;
}
EXPORT void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }
