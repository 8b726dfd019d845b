// A recorded graph on a GPU: what it uploads, whose memory it uses, and what of that the statistics show.
#include <gtest/gtest.h>

#include "core/cuda.h"
#include "core/memory.h"
#include "formats/test_files.h"

namespace ssm {
namespace {

bool skipped() {
  std::string why = "this program was built without CUDA";
  if constexpr (kHasCuda) {
    if (cuda::device_count() > 0) return false;
    why = cuda::why_no_device();
  }
  [&] { GTEST_SKIP() << why; }();
  return true;
}

std::vector<float> values_of(const Tensor& tensor) {
  const Tensor host = tensor.on(Device::cpu());
  return {host.data<float>(), host.data<float>() + host.count()};
}

TEST(GraphCuda, UploadsWhatItWasGivenWhenItWasRecorded) {
  if (skipped()) return;
  if constexpr (kHasCuda) {
    const Device gpu = Device::cuda();
    const Tensor sum = Tensor::zeros({3}, DType::f32, gpu);
    std::vector<float> given = {1, 2, 3};
    cuda::Graph graph(gpu, [&] { sum.add(Tensor::of(given).on(gpu)); });
    given = {7, 7, 7};
    EXPECT_EQ(values_of(sum), (std::vector<float>{0, 0, 0}));
    graph.launch();
    graph.launch();
    EXPECT_EQ(values_of(sum), (std::vector<float>{2, 4, 6}));
  }
}

TEST(GraphCuda, ADownloadIsAnErrorAndLeavesTheGpuUsable) {
  if (skipped()) return;
  if constexpr (kHasCuda) {
    const Device gpu = Device::cuda();
    const Tensor one = Tensor::zeros({3}, DType::f32, gpu);
    EXPECT_TRUE(fails_with("inside a recording", [&] { cuda::Graph(gpu, [&] { one.on(Device::cpu()); }); }));
    EXPECT_FALSE(cuda::recording(gpu));
    one.copy_from(Tensor::of(std::vector<float>{1, 2, 3}));
    EXPECT_EQ(values_of(one), (std::vector<float>{1, 2, 3}));
  }
}

TEST(GraphCuda, TwoMayShareMemoryAndThePeakCountsIt) {
  if (skipped()) return;
  if constexpr (kHasCuda) {
    const Device gpu = Device::cuda();
    constexpr int64_t kCount = int64_t{4} << 20;
    const Tensor first = Tensor::zeros({kCount}, DType::f32, gpu), second = Tensor::zeros({kCount}, DType::f32, gpu);
    const void* places[2] = {};
    const auto work = [&](const Tensor& to, int which) {
      return [&to, &places, which, gpu] {
        const Tensor scratch = Tensor::empty({kCount}, DType::f32, gpu);
        places[which] = scratch.raw();
        scratch.copy_from(to);
        to.add(scratch);
      };
    };
    auto one = std::make_unique<cuda::Graph>(gpu, work(first, 0));
    cuda::Graph two(gpu, work(second, 1), one.get());
    EXPECT_EQ(places[0], places[1]);
    one = nullptr;  // the memory is the other's, too
    second.copy_from(Tensor::of(std::vector<float>(kCount, 1.5f)));
    reset_memory_peak(gpu);
    const int64_t before = memory_stats(gpu).in_use;
    two.launch();
    two.launch();
    EXPECT_EQ(values_of(second), std::vector<float>(kCount, 6.0f));
    EXPECT_EQ(memory_stats(gpu).in_use, before);
    EXPECT_EQ(memory_stats(gpu).peak, before + second.bytes());
  }
}

}  // namespace
}  // namespace ssm
