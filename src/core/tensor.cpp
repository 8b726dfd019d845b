#include "core/tensor.h"

#include <algorithm>
#include <cstring>

#include "core/cuda.h"
#include "core/memory.h"

namespace ssm {
namespace {

Shape row_major(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    strides[i] = step;
    step *= shape[i];
  }
  return strides;
}

// Calls f(offset in a, offset in b) for the start of each innermost run; `run` is its length.
template <class F>
void for_each_run(const Shape& shape, const Tensor& a, const Tensor& b, const F& f) {
  const int outer = shape.rank() - 1;
  Shape index = shape;
  for (int i = 0; i < shape.rank(); ++i) index[i] = 0;
  while (true) {
    int64_t at_a = 0, at_b = 0;
    for (int i = 0; i < outer; ++i) {
      at_a += index[i] * a.stride(i);
      at_b += index[i] * b.stride(i);
    }
    f(at_a, at_b);
    int i = outer - 1;
    while (i >= 0 && ++index[i] == shape[i]) index[i--] = 0;
    if (i < 0) return;
  }
}

template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From>)
    return value;
  else if constexpr (std::is_same_v<To, BF16> || std::is_same_v<To, F16>)
    return To(static_cast<float>(value));
  else if constexpr (std::is_same_v<From, BF16> || std::is_same_v<From, F16>)
    return static_cast<To>(static_cast<float>(value));
  else
    return static_cast<To>(value);
}

// Copies that touch a GPU. Bytes cross between memories contiguous and in the source's dtype; what else is to change
// is done on the GPU, which is faster at it.
void copy_across(const Tensor& to, const Tensor& from) {
  if (to.device().is_cuda() && from.device() == to.device()) return cuda::copy(to, from);
  const bool same = to.dtype() == from.dtype() && to.contiguous();
  if (!to.device().is_cuda()) {  // GPU to host
    const Tensor dense = from.contiguous() && to.dtype() == from.dtype() ? from : from.clone().to(to.dtype());
    const Tensor landing = same ? to : Tensor::empty(to.shape(), to.dtype());
    cuda::download(landing.raw(), dense.raw(), dense.bytes(), dense.device());
    if (!same) to.copy_from(landing);
    return;
  }
  if (from.device().is_cuda()) return to.copy_from(from.on(Device::cpu()));  // between GPUs
  const Tensor dense = from.contiguous() ? from : from.clone();
  const Tensor landing = same ? to : Tensor::empty(to.shape(), from.dtype(), to.device());
  cuda::upload(landing.raw(), dense.raw(), dense.bytes(), to.device());
  if (!same) cuda::copy(to, landing);
}

template <class F>
void with_float_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f64: return f(double{});
    case DType::f32: return f(float{});
    case DType::bf16: return f(BF16{});
    case DType::f16: return f(F16{});
    default: throw Error("expected a floating-point tensor, found ", name_of(dtype));
  }
}

}  // namespace

Shape::Shape(std::span<const int64_t> sizes) {
  require(sizes.size() <= kMaxRank, "a tensor of ", sizes.size(), " dimensions; at most ", kMaxRank, " are supported");
  rank_ = static_cast<int>(sizes.size());
  std::copy(sizes.begin(), sizes.end(), sizes_.begin());
}

int64_t Shape::count() const {
  int64_t product = 1;
  for (int i = 0; i < rank_; ++i) product *= sizes_[static_cast<size_t>(i)];
  return product;
}

bool Shape::operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '(';
  for (int i = 0; i < shape.rank(); ++i) out << (i ? ", " : "") << shape[i];
  return out << ')';
}

Tensor Tensor::empty(const Shape& shape, DType dtype, const Device& device) {
  int64_t bytes = bytes_of(dtype);
  for (const int64_t size : shape)
    require(size >= 0 && !__builtin_mul_overflow(bytes, size, &bytes), "a tensor of shape ", shape,
            " does not fit in memory");
  auto block = allocate_bytes(bytes, device);
  return borrow(block.get(), shape, dtype, block, nullptr, device);
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, const Device& device) {
  Tensor result = empty(shape, dtype, device);
  result.fill_zero();
  return result;
}

Tensor Tensor::borrow(void* data, const Shape& shape, DType dtype, std::shared_ptr<void> owner, const Shape* strides,
                      const Device& device) {
  Tensor result;
  result.data_ = data;
  result.owner_ = std::move(owner);
  result.shape_ = shape;
  result.strides_ = strides ? *strides : row_major(shape);
  result.dtype_ = dtype;
  result.device_ = device.is_cuda() ? device : Device::cpu();
  return result;
}

template <class T>
Tensor Tensor::of(std::span<const T> values, const Shape& shape) {
  DCHECK(static_cast<int64_t>(values.size()) == shape.count());
  Tensor result = empty(shape, DTypeOf<T>::value);
  std::copy(values.begin(), values.end(), result.data<T>());
  return result;
}
template Tensor Tensor::of(std::span<const double>, const Shape&);
template Tensor Tensor::of(std::span<const float>, const Shape&);
template Tensor Tensor::of(std::span<const int64_t>, const Shape&);
template Tensor Tensor::of(std::span<const int32_t>, const Shape&);

bool Tensor::contiguous() const {
  const Shape dense = row_major(shape_);
  for (int i = 0; i < rank(); ++i)
    if (size(i) != 1 && strides_[i] != dense[i]) return count() == 0;
  return true;
}

void Tensor::check_type(DType expected) const {
  require(!data_ || dtype_ == expected, "expected elements of ", name_of(expected), ", found ", name_of(dtype_));
  require(!device_.is_cuda(), "elements of a tensor on ", name_of(device_), " asked for on the host");
}

Tensor Tensor::reshape(const Shape& shape) const {
  require(contiguous() && shape.count() == count(), "cannot see a tensor of shape ", shape_, " as ", shape);
  return borrow(data_, shape, dtype_, owner_, nullptr, device_);
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  DCHECK(0 <= begin && begin <= end && end <= size(0));
  Shape shape = shape_;
  shape[0] = end - begin;
  return borrow(at(begin * strides_[0]), shape, dtype_, owner_, &strides_, device_);
}

Tensor Tensor::columns(int64_t begin, int64_t end) const {
  DCHECK(0 <= begin && begin <= end && end <= size(-1));
  Shape shape = shape_;
  shape[-1] = end - begin;
  return borrow(at(begin * strides_[-1]), shape, dtype_, owner_, &strides_, device_);
}

Tensor Tensor::clone() const {
  if (!data_) return {};
  Tensor result = empty(shape_, dtype_, device_);
  result.copy_from(*this);
  return result;
}

Tensor Tensor::to(DType dtype) const {
  if (!data_ || dtype == dtype_) return *this;
  Tensor result = empty(shape_, dtype, device_);
  result.copy_from(*this);
  return result;
}

Tensor Tensor::on(const Device& device) const {
  const Device place = device.is_cuda() ? device : Device::cpu();
  if (!data_ || place == device_) return *this;
  Tensor result = empty(shape_, dtype_, place);
  result.copy_from(*this);
  return result;
}

void Tensor::copy_from(const Tensor& source) const {
  require(shape_ == source.shape_, "cannot copy a tensor of shape ", source.shape_, " to one of shape ", shape_);
  if (count() == 0) return;
  if constexpr (kHasCuda)
    if (device_.is_cuda() || source.device_.is_cuda()) return copy_across(*this, source);
  if (dtype_ == source.dtype_ && contiguous() && source.contiguous()) {
    std::memmove(data_, source.data_, static_cast<size_t>(bytes()));
    return;
  }
  if (rank() == 0)
    return with_float_type(dtype_, [&](auto to) {
      with_float_type(source.dtype_, [&](auto from) {
        *static_cast<decltype(to)*>(data_) = convert<decltype(to)>(*static_cast<decltype(from)*>(source.data_));
      });
    });
  const int64_t run = size(-1), to_step = strides_[-1], from_step = source.strides_[-1];
  if (dtype_ == source.dtype_ && !is_float(dtype_)) {
    const auto width = static_cast<size_t>(bytes_of(dtype_));
    for_each_run(shape_, *this, source, [&](int64_t a, int64_t b) {
      for (int64_t i = 0; i < run; ++i) std::memcpy(at(a + i * to_step), source.at(b + i * from_step), width);
    });
    return;
  }
  with_float_type(dtype_, [&](auto to) {
    with_float_type(source.dtype_, [&](auto from) {
      auto* target = static_cast<decltype(to)*>(data_);
      const auto* origin = static_cast<const decltype(from)*>(source.data_);
      for_each_run(shape_, *this, source, [&](int64_t a, int64_t b) {
        for (int64_t i = 0; i < run; ++i) target[a + i * to_step] = convert<decltype(to)>(origin[b + i * from_step]);
      });
    });
  });
}

void Tensor::fill_zero() const {
  if (count() == 0) return;
  if constexpr (kHasCuda)
    if (device_.is_cuda()) return cuda::fill_zero(*this);
  if (contiguous()) {
    std::memset(data_, 0, static_cast<size_t>(bytes()));
    return;
  }
  DCHECK(strides_[-1] == 1);
  for_each_run(shape_, *this, *this,
               [&](int64_t a, int64_t) { std::memset(at(a), 0, static_cast<size_t>(size(-1) * bytes_of(dtype_))); });
}

void Tensor::add(const Tensor& other) const {
  require(shape_ == other.shape_ && dtype_ == other.dtype_, "cannot add ", name_of(other.dtype_), " ", other.shape_,
          " to ", name_of(dtype_), " ", shape_);
  if (count() == 0) return;
  if constexpr (kHasCuda)
    if (device_.is_cuda()) return cuda::add(*this, other);
  const auto add_runs = [&]<class T>(T) {
    T* to = static_cast<T*>(data_);
    const T* from = static_cast<const T*>(other.data_);
    if (contiguous() && other.contiguous()) {
      for (int64_t i = 0; i < count(); ++i) to[i] += from[i];
      return;
    }
    for_each_run(shape_, *this, other, [&](int64_t a, int64_t b) {
      for (int64_t i = 0; i < size(-1); ++i) to[a + i * strides_[-1]] += from[b + i * other.strides_[-1]];
    });
  };
  if (dtype_ == DType::f64) return add_runs(double{});
  require(dtype_ == DType::f32, "gradients are f32 or f64, found ", name_of(dtype_));
  add_runs(float{});
}

}  // namespace ssm
