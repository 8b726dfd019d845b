// Signals drawn one above the other over a common axis of samples, two lines a panel at most. One self-contained SVG.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ssm::cli {

struct SignalPlot {
  struct Panel {
    std::string left, right;        // labels above it
    std::span<const double> under;  // the broad line, from sample 0; it sets the scale, unless there is none
    std::span<const double> over;   // the thin line: the last samples, of which the ground is tinted
  };
  std::string title, subtitle, under, over;  // the last two: what the lines are
  int64_t samples = 0;
  std::vector<Panel> panels;
};

std::string svg_of(const SignalPlot& plot);

}  // namespace ssm::cli
