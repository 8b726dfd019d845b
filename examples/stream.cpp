// The same keyword spotter listening: frames arrive one at a time, each is answered as it comes, and what is kept of
// the past is a state of a few kilobytes, however long it listens. `stream [WEIGHTS.safetensors]`
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
    const ssm::Tensor recording = net.tensor("sample_input");  // (100, 40): in a real program, a microphone
    std::printf("state: %lld bytes\n", static_cast<long long>(mamba.state_bytes()));

    const ssm::Tensor sum = ssm::Tensor::zeros({1, 64}, ssm::DType::f32),
                      mean = ssm::Tensor::zeros({1, 64}, ssm::DType::f32);
    for (int64_t t = 0; t < recording.size(0); ++t) {
      const ssm::Tensor frame = recording.rows(t, t + 1);                         // (1, 40)
      const ssm::Tensor feature = mamba.forward(net.linear("linear_in", frame));  // (1, 64)
      for (int64_t c = 0; c < 64; ++c) {
        sum.data<float>()[c] += feature.data<float>()[c];
        mean.data<float>()[c] = sum.data<float>()[c] / static_cast<float>(t + 1);
      }
      const ssm::Tensor logits = net.linear("classifier", mean);  // (1, 10), with what was heard so far
      const auto all = logits.span<float>();
      const auto best = std::max_element(all.begin(), all.end());
      if ((t + 1) % 10 == 0)
        std::printf("frame %3lld: class %td  %.6f\n", static_cast<long long>(t + 1), best - all.begin(),
                    static_cast<double>(*best));
    }
    return 0;
  } catch (const ssm::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
