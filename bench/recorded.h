// What the published implementation was recorded at on one NVIDIA H200 (132 multiprocessors) in November 2026, medians:
// state-spaces/mamba 2.3.2 with causal-conv1d 1.6, PyTorch 2.11 and CUDA 13. It is not run again here, so the ratios
// beside it hold on that GPU alone.
#pragma once

#include <string_view>

namespace ssm::bench {

inline constexpr std::string_view kRecordedName = "mamba 2.3.2 (recorded)";

// Of a row's name and shape; 0 when nothing was recorded.
double recorded_seconds(std::string_view name, std::string_view shape);

}  // namespace ssm::bench
