// The kernel of the selective scan forward, (9) to (12), out of its two roles.
#pragma once

#include "ops/selective_scan/selective_scan_helper.cuh"
#include "ops/selective_scan/selective_scan_scanner.cuh"

namespace ssm::cuda {

template <class S, ScanOutput kOutput, bool kAligned>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    scan_forward_kernel(const __grid_constant__ ScanArguments<typename S::Element> args) {
  extern __shared__ __align__(16) float scan_shared[];
  const ScanBlock<S> block(args, scan_shared);
  if (threadIdx.x < S::kScanners)
    Scanner<S, kOutput>(args, block).run();
  else
    Helper<S, kOutput, kAligned>(args, block).run();
}

}  // namespace ssm::cuda
