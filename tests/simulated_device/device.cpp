// A device that is none: memory of its own kind, and the CPU's kernels. As on a GPU, an operation on its tensors and on
// the CPU's is an error, but for numbers without a dimension and for indices; and new memory holds no zeros.

#include <ATen/ATen.h>
#include <ATen/CPUFunctions.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/copy_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstring>
#include <set>

namespace {

using namespace at;

const Device THERE(DeviceType::PrivateUse1, 0);
const DispatchKeySet KEY(DispatchKey::PrivateUse1);

// --- the device, of which there is one, with one stream that is never behind

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return THERE.type(); }
  Device exchangeDevice(Device) const override { return THERE; }
  Device getDevice() const override { return THERE; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, THERE); }
  Stream getNewStream(Device, int) const override { return Stream(Stream::DEFAULT, THERE); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, THERE); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Memory final : Allocator {
  DataPtr allocate(size_t bytes) override {
    void* place = bytes ? c10::GetCPUAllocator()->raw_allocate(bytes) : nullptr;
    if (bytes) std::memset(place, 0x7f, bytes);
    return {place, place, &release, THERE};
  }
  static void release(void* place) {
    if (place) c10::GetCPUAllocator()->raw_deallocate(place);
  }
  DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(DeviceType::PrivateUse1, &memory);

struct Numbers final : CPUGeneratorImpl {
  Numbers() {
    device_ = THERE;
    key_set_ = KEY;
  }
};

struct Hooks final : PrivateUse1HooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  bool isPinnedPtr(const void*) const override { return false; }
  Generator getNewGenerator(DeviceIndex) const override { return make_generator<Numbers>(); }
  const Generator& getDefaultGenerator(DeviceIndex) const override {
    static const Generator numbers = make_generator<Numbers>();
    return numbers;
  }
  void resizePrivateUse1Bytes(const Storage& storage, size_t bytes) const override {
    auto* held = storage.unsafeGetStorageImpl();
    DataPtr place = memory.allocate(bytes);
    std::memcpy(place.get(), held->data(), std::min(bytes, held->nbytes()));
    held->set_data_ptr_noswap(std::move(place));
    held->set_nbytes(bytes);
  }
};
const bool hooked = [] {
  static Hooks hooks;
  RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();

// --- what makes, views and moves tensors; the CPU's functions do, where they ask for no memory

Tensor as_cpu(const Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  auto options = tensor.options().device(kCPU).requires_grad(false);
  return from_blob(const_cast<void*>(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(), options);
}

Tensor make(
    IntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device>,
    std::optional<bool>, std::optional<MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEY, c10::dtype_or_default(dtype), format);
}

Tensor make_strided(
    IntArrayRef size, IntArrayRef stride, std::optional<ScalarType> dtype, std::optional<Layout>,
    std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEY, c10::dtype_or_default(dtype));
}

Tensor view_strided(
    const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  return at::cpu::as_strided_symint(self, size, stride, offset);
}

Tensor view_aliased(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) {
  return native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

const Tensor& size_anew(const Tensor& self, c10::SymIntArrayRef size, std::optional<MemoryFormat> format) {
  return native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  Tensor target = as_cpu(to);
  native::copy_(target, as_cpu(from), non_blocking);
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

Scalar item(const Tensor& self) {
  return native::_local_scalar_dense_cpu(as_cpu(self));
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return native::set_tensor_(self, source);
}

Tensor& set_storage(Tensor& self, Storage storage) {
  return native::set_(self, storage);
}

Tensor& set_part(Tensor& self, Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  return at::cpu::set_(self, storage, offset, size, stride);
}

// --- everything else

// Their CPU arguments a GPU takes too.
const std::set<std::string> MIXED = {
    "aten::copy_", "aten::_foreach_copy_", "aten::index", "aten::index_put", "aten::index_put_",
    "aten::_index_put_impl_"};

void check_devices(const c10::FunctionSchema& schema, const torch::jit::Stack& stack) {
  if (MIXED.count(schema.name())) return;
  const bool fused = schema.name().rfind("aten::_f", 0) == 0;  // _foreach_*, _fused_*
  const auto arguments = schema.arguments();
  for (size_t place = 0; place < arguments.size(); place++) {
    const auto check = [&](const Tensor& tensor) {
      if (!tensor.defined() || !tensor.is_cpu()) return;
      if (tensor.dim() == 0 && (!fused || arguments[place].name() == "state_steps")) return;
      TORCH_CHECK(false, "Expected all tensors to be on the same device: ", schema.name(), " was given a ",
                  arguments[place].name(), " of the CPU");
    };
    const auto& value = stack[stack.size() - arguments.size() + place];
    if (value.isTensor()) check(value.toTensor());
    if (value.isTensorList())
      for (const Tensor& tensor : value.toTensorList()) check(tensor);
  }
}

void on_the_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  check_devices(operation.schema(), *stack);
  const size_t count = operation.schema().arguments().size();
  for (auto value = stack->end() - count; value != stack->end(); ++value)
    if (value->isGenerator()) *value = at::detail::getDefaultCPUGenerator();
  native::cpu_fallback(operation, stack);
}

int64_t plain_attention(
    const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool, std::optional<double>,
    bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

}  // namespace

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &plain_attention);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", make);
  m.impl("empty_strided", make_strided);
  m.impl("as_strided", view_strided);
  m.impl("_reshape_alias", view_aliased);
  m.impl("view", view);
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("resize_", size_anew);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", item);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_part);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>());
}

// Autocast converts what it does on a GPU.
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FLOAT32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define SUMMED(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FLOAT32)
  AT_FORALL_FP32_SET_OPT_DTYPE(SUMMED)
  AT_FORALL_PROMOTE(WIDEST)
}
