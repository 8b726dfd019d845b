// The least a user of the installed library does: both spellings of a header, calls into the library, one of them through
// its thread pool. Exits 1 when a result is wrong.
#include <core/tensor.h>
#include <ssm/core/threads.h>
#include <tokenizers/tokenizer.h>

#include <cstdio>

int main() {
  const ssm::Tensor values = ssm::Tensor::zeros({2, 3}, ssm::DType::f32);  // (2, 3)
  const auto m = values.matrix<float>();
  ssm::Threads(2).parallel(m.rows, [&](int64_t row, int) {
    for (int64_t column = 0; column < m.columns; ++column) m[row][column] = static_cast<float>(column + 1);
  });
  const ssm::Tensor last = values.columns(2, 3).clone();  // (2, 1)
  const bool bases = ssm::open_tokenizer("dna")->encode("ACGT").size() == 4;
  const bool right = bases && last.data<float>()[0] == 3.0f && last.data<float>()[1] == 3.0f;
  std::printf("installed ssm: %s\n", right ? "right" : "wrong");
  return right ? 0 : 1;
}
