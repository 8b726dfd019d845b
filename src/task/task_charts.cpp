#include "task/task_charts.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>

#include "core/error.h"

namespace ssm {
namespace {

// Pixels.
constexpr double kLeft = 52, kPlot = 620, kKey = 228, kTop = 52, kTall = 300, kFoot = 52;
constexpr double kBar = 13, kGap = 11, kLabels = 190;
constexpr const char *kInk = "#22252a", *kQuiet = "#77736a", *kGrid = "#e4e1da";
constexpr std::array<const char*, 9> kColours = {"#1f6f5c", "#c0392b", "#e08e45", "#8e6bbf", "#3b76b5",
                                                 "#b9b4a7", "#b0457b", "#7a8b2a", "#444a52"};

std::string px(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.1f", value);
  return buffer;
}

std::string escaped(const std::string& words) {
  std::string safe;
  for (const char c : words) safe += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
  return safe;
}

std::string label(double x, double y, const std::string& words, const std::string& attributes = "") {
  return text("<text x=\"", px(x), "\" y=\"", px(y), "\" ", attributes, ">", escaped(words), "</text>\n");
}

std::string head(double width, double height, const std::string& title) {
  return text("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", px(width), "\" height=\"", px(height),
              "\" viewBox=\"0 0 ", px(width), " ", px(height), "\" font-family=\"sans-serif\" font-size=\"12\" fill=\"",
              kInk, "\">\n<rect width=\"", px(width), "\" height=\"", px(height), "\" fill=\"white\"/>\n") +
         label(12, 22, title, "font-size=\"15\" font-weight=\"bold\"");
}

const char* colour(size_t index) { return kColours.at(index % kColours.size()); }

// 256 -> "256", 65536 -> "2^16" raised.
std::string tick_label(double x, double y, int64_t value) {
  const bool power = value > 1024 && std::has_single_bit(static_cast<uint64_t>(value));
  const std::string words =
      power ? text("2<tspan dy=\"-4\" font-size=\"9\">", std::bit_width(static_cast<uint64_t>(value)) - 1, "</tspan>")
            : std::to_string(value);
  return text("<text x=\"", px(x), "\" y=\"", px(y), "\" text-anchor=\"middle\" fill=\"", kQuiet, "\">", words,
              "</text>\n");
}

}  // namespace

std::string svg_of(const LineChart& chart) {
  std::vector<int64_t> ticks;
  for (const LineChart::Series& series : chart.series)
    for (const auto& [at, share] : series.points) ticks.push_back(at);
  std::sort(ticks.begin(), ticks.end());
  ticks.erase(std::unique(ticks.begin(), ticks.end()), ticks.end());
  require(!ticks.empty(), "a chart needs a point");
  const double low = std::log2(static_cast<double>(ticks.front())), high = std::log2(static_cast<double>(ticks.back()));
  const auto x = [&](int64_t at) {
    return kLeft + (high > low ? kPlot * (std::log2(static_cast<double>(at)) - low) / (high - low) : kPlot / 2);
  };
  const auto y = [&](double share) { return kTop + kTall * (1 - share); };
  std::string svg = head(kLeft + kPlot + kKey, kTop + kTall + kFoot, chart.title);
  for (int percent = 0; percent <= 100; percent += 20) {
    svg += text("<path d=\"M", px(kLeft), " ", px(y(percent / 100.0)), "h", px(kPlot), "\" stroke=\"", kGrid, "\"/>\n");
    svg +=
        label(kLeft - 8, y(percent / 100.0) + 4, text(percent, "%"), text("text-anchor=\"end\" fill=\"", kQuiet, "\""));
  }
  for (const int64_t at : ticks) svg += tick_label(x(at), kTop + kTall + 18, at);
  svg += label(kLeft + kPlot / 2, kTop + kTall + 40, chart.axis, "text-anchor=\"middle\"");
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const LineChart::Series& series = chart.series[i];
    std::string points, dots;
    for (const auto& [at, share] : series.points) {
      points += (points.empty() ? "M" : " ") + px(x(at)) + " " + px(y(share));
      dots += text("<circle cx=\"", px(x(at)), "\" cy=\"", px(y(share)), "\" r=\"2.6\"/>");
    }
    svg += text("<g fill=\"", colour(i), "\"><path d=\"", points, "\" fill=\"none\" stroke=\"", colour(i),
                "\" stroke-width=\"2\" stroke-linejoin=\"round\"/>", dots, "</g>\n");
    const double key = kTop + 10 + 20 * static_cast<double>(i);
    svg += text("<path d=\"M", px(kLeft + kPlot + 20), " ", px(key - 4), "h22\" stroke=\"", colour(i),
                "\" stroke-width=\"2\"/>\n");
    svg += label(kLeft + kPlot + 50, key, series.name);
  }
  return svg + "</svg>\n";
}

std::string svg_of(const BarChart& chart) {
  const auto bars = static_cast<double>(chart.legend.size());
  const double step = bars * kBar + kGap, bottom = kTop + 20 + step * static_cast<double>(chart.groups.size());
  constexpr double kLong = 520;
  std::string svg = head(kLabels + kLong + 70, bottom + 34, chart.title);
  double key = 12;
  for (size_t i = 0; i < chart.legend.size(); ++i) {
    svg += text("<rect x=\"", px(key), "\" y=\"35\" width=\"12\" height=\"12\" fill=\"", colour(i == 0 ? 5 : i - 1),
                "\"/>\n");
    svg += label(key + 17, 45, chart.legend[i]);
    key += 40 + 7 * static_cast<double>(chart.legend[i].size());
  }
  for (int percent = 0; percent <= 100; percent += 20) {
    const double at = kLabels + kLong * percent / 100;
    svg += text("<path d=\"M", px(at), " ", px(kTop + 8), "V", px(bottom), "\" stroke=\"", kGrid, "\"/>\n");
    svg += label(at, bottom + 16, text(percent, "%"), text("text-anchor=\"middle\" fill=\"", kQuiet, "\""));
  }
  for (size_t g = 0; g < chart.groups.size(); ++g) {
    const BarChart::Group& group = chart.groups[g];
    const double top = kTop + 20 + step * static_cast<double>(g);
    svg += label(kLabels - 8, top + bars * kBar / 2 + 4, group.name, "text-anchor=\"end\"");
    for (size_t i = 0; i < group.shares.size(); ++i) {
      if (group.shares[i] < 0) continue;
      const double y = top + kBar * static_cast<double>(i), wide = kLong * group.shares[i];
      svg += text("<rect x=\"", px(kLabels), "\" y=\"", px(y), "\" width=\"", px(wide), "\" height=\"", px(kBar - 1),
                  "\" fill=\"", colour(i == 0 ? 5 : i - 1), "\"/>\n");
      svg += label(kLabels + wide + 5, y + kBar - 3, px(100 * group.shares[i]), "font-size=\"11\"");
    }
  }
  return svg + "</svg>\n";
}

}  // namespace ssm
