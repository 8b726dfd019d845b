// Two kinds of charts, each one self-contained SVG: shares (0 to 1) as lines over a logarithmic axis, and as bars side
// by side.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ssm {

struct LineChart {
  struct Series {
    std::string name;
    std::vector<std::pair<int64_t, double>> points;  // ascending
  };
  std::string title, axis;
  std::vector<Series> series;
};

struct BarChart {
  struct Group {
    std::string name;
    std::vector<double> shares;  // one a legend's entry; less than 0: none
  };
  std::string title;
  std::vector<std::string> legend;
  std::vector<Group> groups;
};

std::string svg_of(const LineChart& chart);
std::string svg_of(const BarChart& chart);

}  // namespace ssm
