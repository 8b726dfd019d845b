// A tensor is a handle to memory: shape, strides in elements, dtype, and where the memory is. Copying the handle shares
// the elements; views share them too. Sizes are 64-bit. Elements in the host's memory are reached with data<T>() or
// matrix<T>(); those of a GPU are reached by kernels, and by on(Device::cpu()), which brings a copy.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <ostream>
#include <span>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "core/error.h"

namespace ssm {

// Up to four sizes.
class Shape {
 public:
  static constexpr int kMaxRank = 4;
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : Shape(std::span<const int64_t>(sizes.begin(), sizes.size())) {}
  explicit Shape(std::span<const int64_t> sizes);
  int rank() const { return rank_; }
  int64_t operator[](int i) const { return sizes_[static_cast<size_t>(i < 0 ? rank_ + i : i)]; }
  int64_t& operator[](int i) { return sizes_[static_cast<size_t>(i < 0 ? rank_ + i : i)]; }
  int64_t count() const;  // product of the sizes
  bool operator==(const Shape& other) const;
  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + rank_; }

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};
std::ostream& operator<<(std::ostream& out, const Shape& shape);  // (2, 3)

// Rows of a tensor of rank 1 or 2 with unit inner stride: m[row][column].
template <class T>
struct Matrix {
  T* data = nullptr;
  int64_t rows = 0, columns = 0, stride = 0;
  T* operator[](int64_t row) const { return data + row * stride; }
  explicit operator bool() const { return data != nullptr; }
};

class Tensor {
 public:
  Tensor() = default;  // no elements: "absent" wherever an argument is optional
  static Tensor empty(const Shape& shape, DType dtype, const Device& device = Device::cpu());  // uninitialised
  static Tensor zeros(const Shape& shape, DType dtype, const Device& device = Device::cpu());
  // Elements owned by somebody else, kept alive by `owner`; strides in elements, row-major when left out.
  static Tensor borrow(void* data, const Shape& shape, DType dtype, std::shared_ptr<void> owner,
                       const Shape* strides = nullptr, const Device& device = Device::cpu());
  template <class T>
  static Tensor of(std::span<const T> values, const Shape& shape);  // a copy of values
  template <class T>
  static Tensor of(const std::vector<T>& values) {
    return of(std::span<const T>(values), Shape{static_cast<int64_t>(values.size())});
  }

  explicit operator bool() const { return data_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t size(int dim) const { return shape_[dim]; }
  int64_t stride(int dim) const { return strides_[dim]; }
  int64_t count() const { return shape_.count(); }
  int64_t bytes() const { return count() * bytes_of(dtype_); }
  DType dtype() const { return dtype_; }
  const Device& device() const { return device_; }  // cpu for all of the host's memory
  bool contiguous() const;
  void* raw() const { return data_; }
  const void* storage() const { return owner_.get(); }  // equal for tensors that share memory

  template <class T>
  T* data() const {  // contiguous elements (or a row-strided matrix's first); the dtype must be T's
    check_type(DTypeOf<T>::value);
    return static_cast<T*>(data_);
  }
  template <class T>
  Matrix<T> matrix() const;  // rank 2 (rank 1 is one row) with unit inner stride; absent gives a null matrix
  template <class T>
  std::span<T> span() const {
    return {data<T>(), static_cast<size_t>(count())};
  }
  template <class T>
  T item() const {  // the only element
    DCHECK(count() == 1);
    return *data<T>();
  }

  Tensor reshape(const Shape& shape) const;          // contiguous tensors only
  Tensor rows(int64_t begin, int64_t end) const;     // view of the first dimension
  Tensor columns(int64_t begin, int64_t end) const;  // view of the last dimension
  Tensor clone() const;                              // contiguous copy
  Tensor to(DType dtype) const;                      // converted contiguous copy, or itself
  Tensor on(const Device& device) const;             // contiguous copy in that memory, or itself
  void copy_from(const Tensor& source) const;        // same shape, any place; converts between float types
  void fill_zero() const;
  void add(const Tensor& other) const;  // this += other, same shape and float dtype

 private:
  void check_type(DType expected) const;
  std::byte* at(int64_t offset) const { return static_cast<std::byte*>(data_) + offset * bytes_of(dtype_); }

  void* data_ = nullptr;
  std::shared_ptr<void> owner_;
  Shape shape_, strides_;
  DType dtype_ = DType::f32;
  Device device_;
};

template <class T>
Matrix<T> Tensor::matrix() const {
  if (!data_) return {};
  DCHECK(rank() == 1 || rank() == 2);
  DCHECK(stride(-1) == 1 || size(-1) == 1);
  const bool one_row = rank() == 1;
  return {data<T>(), one_row ? 1 : size(0), size(-1), one_row ? size(0) : stride(0)};
}

}  // namespace ssm
