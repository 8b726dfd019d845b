#include "cli/signal_plot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/error.h"

namespace ssm::cli {
namespace {

// Pixels.
constexpr double kWidth = 900, kLeft = 20, kRight = 20, kTop = 84, kPanel = 132, kGap = 30, kBottom = 34;
constexpr double kInner = kWidth - kLeft - kRight;
constexpr const char *kInk = "#22252a", *kQuiet = "#77736a", *kGrid = "#e4e1da", *kUnder = "#b9b4a7",
                     *kOver = "#1f6f5c", *kTint = "#f3f7f4";

std::string fixed(double value, int digits) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.*f", digits, value);
  return buffer;
}

std::string px(double value) { return fixed(value, 1); }

std::string grouped(int64_t number) {
  std::string digits = std::to_string(number);
  for (size_t at = digits.size(); at > 3;) digits.insert(at -= 3, ",");
  return digits;
}

// What maps samples and values to pixels.
struct Frame {
  int64_t samples;
  double low, high;
  double x(double sample) const { return kLeft + kInner * sample / static_cast<double>(samples); }
  double y(double value) const { return kPanel * (high - value) / (high - low); }
};

// A line through the middles of samples `first` on; where several fall on a pixel, through their least and greatest.
std::string line(const Frame& frame, int64_t first, std::span<const double> values, const char* colour, double width) {
  const auto count = static_cast<int64_t>(values.size());
  const int64_t columns = 2 * static_cast<int64_t>(kInner);  // two a pixel
  std::string points;
  const auto point = [&](double sample, double value) {
    // Far above or below the frame a line is cut off anyway; without the bound its numbers could be of any length.
    const double y = std::clamp(frame.y(value), -10 * kPanel, 11 * kPanel);
    points += (points.empty() ? "M" : " ") + px(frame.x(sample)) + " " + px(y);
  };
  if (count <= columns) {
    for (int64_t k = 0; k < count; ++k) point(static_cast<double>(first + k) + 0.5, values[static_cast<size_t>(k)]);
  } else {
    for (int64_t column = 0; column < columns / 2; ++column) {
      const auto begin = values.begin() + 2 * column * count / columns,
                 end = values.begin() + 2 * (column + 1) * count / columns;
      const auto [least, greatest] = std::minmax_element(begin, end);
      const bool rises = least < greatest;
      const double middle =
          static_cast<double>(first) + static_cast<double>((2 * column + 1) * count) / static_cast<double>(columns);
      point(middle, rises ? *least : *greatest);
      point(middle, rises ? *greatest : *least);
    }
  }
  return text("<path d=\"", points, "\" fill=\"none\" stroke=\"", colour, "\" stroke-width=\"", width,
              "\" stroke-linejoin=\"round\"/>\n");
}

// About eight round numbers from 0 to `samples`.
int64_t tick_of(int64_t samples) {
  const double rough = static_cast<double>(samples) / 8, unit = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * unit >= rough) return std::max<int64_t>(1, std::llround(factor * unit));
  return std::max<int64_t>(1, std::llround(10 * unit));
}

std::string label(double x, double y, const std::string& words, const std::string& attributes = "") {
  return text("<text x=\"", px(x), "\" y=\"", px(y), "\"", attributes.empty() ? "" : " ", attributes, ">", words,
              "</text>\n");
}

// From the least to the greatest value and a tenth more on either side, halved before subtracting so that nothing
// overflows; a constant gets a frame of its own.
Frame frame_of(const SignalPlot& plot, const SignalPlot::Panel& panel) {
  const std::span<const double> values = panel.under.empty() ? panel.over : panel.under;
  const auto [least, greatest] = std::minmax_element(values.begin(), values.end());
  const double half = *greatest / 2 - *least / 2, middle = *greatest / 2 + *least / 2;
  const double reach = half > 0 ? 1.2 * half : std::max(1.0, std::abs(middle));
  return {plot.samples, middle - reach, middle + reach};
}

std::string panel_svg(const SignalPlot& plot, const SignalPlot::Panel& panel, double top) {
  const Frame frame = frame_of(plot, panel);
  const int64_t first = frame.samples - static_cast<int64_t>(panel.over.size());
  const double left = frame.x(static_cast<double>(first)), right = frame.x(static_cast<double>(frame.samples));
  std::string svg = text("<g transform=\"translate(0 ", px(top), ")\">\n");
  svg += text("<rect x=\"", px(left), "\" y=\"0\" width=\"", px(right - left), "\" height=\"", px(kPanel), "\" fill=\"",
              kTint, "\"/>\n");
  const int64_t tick = tick_of(frame.samples);
  for (int64_t at = 0; at <= frame.samples; at += tick)
    svg +=
        text("<path d=\"M", px(frame.x(static_cast<double>(at))), " 0V", px(kPanel), "\" stroke=\"", kGrid, "\"/>\n");
  svg += "<g clip-path=\"url(#panel)\">\n";
  if (!panel.under.empty()) svg += line(frame, 0, panel.under, kUnder, 3);
  if (!panel.over.empty()) svg += line(frame, first, panel.over, kOver, 1.5);
  svg += "</g>\n" + label(kLeft, -7, panel.left, "font-weight=\"bold\"");
  svg += label(kWidth - kRight, -7, panel.right, "text-anchor=\"end\"");
  return svg + "</g>\n";
}

}  // namespace

std::string svg_of(const SignalPlot& plot) {
  const auto count = static_cast<double>(plot.panels.size());
  const double height = kTop + count * kPanel + (count - 1) * kGap + kBottom;

  std::string svg =
      text("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", kWidth, "\" height=\"", height, "\" viewBox=\"0 0 ",
           kWidth, " ", height, "\" font-family=\"sans-serif\" font-size=\"12\" fill=\"", kInk, "\">\n<rect width=\"",
           kWidth, "\" height=\"", height, "\" fill=\"white\"/>\n");
  svg += text("<clipPath id=\"panel\"><rect x=\"", px(kLeft), "\" y=\"0\" width=\"", px(kInner), "\" height=\"",
              px(kPanel), "\"/></clipPath>\n");
  svg += label(kLeft, 24, plot.title, "font-size=\"16\" font-weight=\"bold\"");
  svg += label(kLeft, 43, plot.subtitle, text("fill=\"", kQuiet, "\""));
  const double key = kWidth - kRight - 300;
  svg += text("<path d=\"M", px(key), " 20h22\" stroke=\"", kUnder, "\" stroke-width=\"3\"/>\n");
  svg += label(key + 28, 24, plot.under);
  svg += text("<path d=\"M", px(key + 190), " 20h22\" stroke=\"", kOver, "\" stroke-width=\"1.5\"/>\n");
  svg += label(key + 218, 24, plot.over);
  double top = kTop;
  for (const SignalPlot::Panel& panel : plot.panels) {
    svg += panel_svg(plot, panel, top);
    top += kPanel + kGap;
  }
  const Frame frame{plot.samples, 0, 1};
  const int64_t tick = tick_of(frame.samples);
  for (int64_t at = 0; at <= frame.samples; at += tick)
    svg += label(frame.x(static_cast<double>(at)), height - 16, grouped(at),
                 text("fill=\"", kQuiet, "\" text-anchor=\"",
                      at == 0                     ? "start"
                      : at + tick > frame.samples ? "end"
                                                  : "middle",
                      "\""));
  return svg + "</svg>\n";
}

}  // namespace ssm::cli
