// A drawing of what a HiPPO state remembers: the signal, and over it what is rebuilt from states of several sizes. One
// self-contained SVG.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ssm::cli {

struct MemoryPlot {
  struct Panel {
    int64_t n;                     // numbers in the state
    double error;                  // as a share of the signal's spread
    std::vector<double> recalled;  // the signal's last samples
  };
  std::string title, subtitle;
  std::span<const double> signal;
  std::vector<Panel> panels;
};

std::string memory_svg(const MemoryPlot& plot);
std::string percent(double share);  // "3.14 %", three digits

}  // namespace ssm::cli
