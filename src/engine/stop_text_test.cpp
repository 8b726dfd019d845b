// Stop texts across the borders of pieces, against a plain search over the whole text.
#include "engine/stop_text.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/rng.h"

namespace ssm {
namespace {

using Texts = std::vector<std::string>;

// By definition: the text up to the stop that is complete first.
std::string expected(const std::string& text, const Texts& stops, bool& stopped) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops)
      if (std::string_view(text).substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    if (longest == 0) continue;
    stopped = true;
    return text.substr(0, end - longest);
  }
  stopped = false;
  return text;
}

TEST(StopText, FindsStopsWhereverTheTextIsCut) {
  const Rng rng(2, "text");
  uint64_t at = 0;
  int stops_found = 0;
  for (int round = 0; round < 2000; ++round) {
    const Texts stops = round % 2 ? Texts{"abab", "bb", "babb"} : Texts{"aab"};
    std::string text;
    for (uint64_t i = rng.below(at++, 12); i > 0; --i) text += rng.below(at++, 2) ? 'a' : 'b';
    bool should_stop = false;
    const std::string right = expected(text, stops, should_stop);
    StopText stop(stops);
    std::string out;
    for (size_t begin = 0; begin < text.size() && !stop.stopped();) {
      const size_t count = 1 + rng.below(at++, 4);
      out += stop.push(std::string_view(text).substr(begin, count));
      EXPECT_EQ(right.substr(0, out.size()), out) << "let through what belongs to a stop";
      begin += count;
    }
    out += stop.finish();
    EXPECT_EQ(out, right) << text;
    EXPECT_EQ(stop.stopped(), should_stop) << text;
    stops_found += should_stop;
  }
  EXPECT_GT(stops_found, 200);
}

TEST(StopText, HoldsBackOnlyWhatMayBecomeAStop) {
  StopText stop({"\n\nROMEO"});
  EXPECT_EQ(stop.push("hello\n"), "hello");
  EXPECT_EQ(stop.push("\nROM"), "");
  EXPECT_EQ(stop.push("AN\n"), "\n\nROMAN");
  EXPECT_EQ(stop.finish(), "\n");
  EXPECT_FALSE(stop.stopped());
}

TEST(StopText, WithoutStopsEverythingPasses) {
  StopText stop({});
  EXPECT_EQ(stop.push("a"), "a");
  EXPECT_EQ(stop.push(""), "");
  EXPECT_EQ(stop.finish(), "");
}

TEST(StopText, AnEmptyStopIsAnError) { EXPECT_THROW(StopText({"x", ""}), Error); }

}  // namespace
}  // namespace ssm
