// A published classifier inside a native program: which of ten keywords is spoken in 100 frames of 40 features each?
// Linear 40 -> 64, one Mamba block, the mean over the frames, Linear 64 -> 10. `keyword [WEIGHTS.safetensors]`
#include <algorithm>
#include <cstdio>

#include "ssm.h"

#ifndef KEYWORD_WEIGHTS
#define KEYWORD_WEIGHTS "data/keyword-spotter/mambakws-any-10.safetensors"
#endif

int main(int argc, char** argv) {
  try {
    const ssm::Network net = ssm::Network::open(argc > 1 ? argv[1] : KEYWORD_WEIGHTS);
    ssm::MixerStream mamba = net.mixer("mamba", "Mamba1", /*d_model=*/64);
    const ssm::Tensor frames = net.tensor("sample_input");  // (100, 40), one recording of the authors

    const ssm::Tensor features = mamba.forward(net.linear("linear_in", frames));  // (100, 64)
    const ssm::Tensor mean = ssm::Tensor::zeros({1, 64}, ssm::DType::f32);
    for (int64_t t = 0; t < features.size(0); ++t)
      for (int64_t c = 0; c < 64; ++c)
        mean.data<float>()[c] += features.matrix<float>()[t][c] / static_cast<float>(features.size(0));

    const ssm::Tensor logits = net.linear("classifier", mean);  // (1, 10)
    const auto all = logits.span<float>();
    for (size_t i = 0; i < all.size(); ++i) std::printf("class %zu  %10.6f\n", i, static_cast<double>(all[i]));
    const auto best = std::max_element(all.begin(), all.end());
    std::printf("it is class %td\n", best - all.begin());
    return 0;
  } catch (const ssm::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
