// `ssm lti` and `ssm hippo` as their users run them, and every kind of bad input.
#include <cmath>

#include "tests/program.h"

namespace ssm {
namespace {

class LtiProgram : public Program {
 protected:
  LtiProgram() {
    array("A.npy", {-0.1, 1, -1, -0.1}, {2, 2});
    array("B.npy", {0, 1}, {2});
    array("C.npy", {1, 0}, {2});
    array("u.npy", {1, 0, 0, 0, 2, 0, -1, 0.5}, {8});
  }

  void array(std::string_view name, const std::vector<double>& values, const Shape& shape) const {
    write_npy(path(name), Tensor::of(std::span<const double>(values), shape));
  }
  std::vector<double> read(std::string_view name) const {
    const Tensor tensor = read_npy(path(name));
    EXPECT_EQ(tensor.dtype(), DType::f64);
    return {tensor.data<double>(), tensor.data<double>() + tensor.count()};
  }
  Words lti(const Words& more) const {
    Words words = {"lti", "--A", arg("A.npy"), "--B", arg("B.npy"), "--C", arg("C.npy")};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
};

TEST_F(LtiProgram, ThreeViewsGiveOneOutput) {
  array("D.npy", {0.25}, {1});
  for (const char* view : {"recurrence", "convolution", "scan"})
    expect_done(lti({"--D", arg("D.npy"), "--dt", "0.1", "--input", arg("u.npy"), "--view", view, "--out",
                     arg(text(view, ".npy"))}));
  const std::vector<double> y = read("recurrence.npy"), convolved = read("convolution.npy"), scanned = read("scan.npy");
  ASSERT_EQ(y.size(), 8u);
  for (size_t i = 0; i < y.size(); ++i) {
    EXPECT_NEAR(convolved[i], y[i], 1e-14);
    EXPECT_NEAR(scanned[i], y[i], 1e-14);
  }
  // From rest, held: x1 is the integral of e^(-s/10) sin s over the step; D adds a quarter of the input.
  const double decay = std::exp(-0.01);
  EXPECT_NEAR(y[0], 0.25 + (1 - decay * (std::cos(0.1) + 0.1 * std::sin(0.1))) / 1.01, 1e-14);
}

TEST_F(LtiProgram, WritesTheDiscreteSystem) {
  const Json result =
      expect_done(lti({"--dt", "0.5", "--method", "euler", "--discretized", arg("discrete"), "--json"})).json();
  EXPECT_EQ(result["states"], 2);
  EXPECT_EQ(result["method"], "euler");
  EXPECT_EQ(read("discrete/A.npy"), (std::vector<double>{0.95, 0.5, -0.5, 0.95}));
  EXPECT_EQ(read("discrete/B.npy"), (std::vector<double>{0, 0.5}));
  EXPECT_EQ(read("discrete/C.npy"), (std::vector<double>{1, 0}));
  EXPECT_EQ(read("discrete/D.npy"), (std::vector<double>{0}));
  expect_error(lti({"--dt", "0.5", "--discretized", arg("discrete")}), "already exists");
}

TEST_F(LtiProgram, DrawsInputOutputAndKernel) {
  for (const char* method : {"zoh", "euler"}) {
    expect_done(lti({"--dt", "0.1", "--method", method, "--input", arg("u.npy"), "--plot", arg("lti.svg")}));
    const std::string svg = read_text(path("lti.svg"));
    EXPECT_TRUE(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"));
    EXPECT_NE(svg.find(">input u<"), std::string::npos);
    EXPECT_EQ(svg.find("nan"), std::string::npos);
  }
}

TEST_F(LtiProgram, BadSystemsAreErrors) {
  const Words run = {"--dt", "0.1", "--input", arg("u.npy"), "--out", arg("y.npy")};
  expect_usage(lti({"--dt", "0.1"}), "nothing to do");
  expect_usage(lti({"--dt", "0", "--discretized", arg("d")}), "--dt is 0");
  expect_usage(lti({"--dt", "0.1", "--out", arg("y.npy")}), "--out needs --input");
  expect_usage(lti({"--dt", "0.1", "--discretized", arg("d"), "--method", "tustin"}), "--method is \"tustin\"");
  expect_usage(lti({"--dt", "0.1", "--discretized", arg("d"), "--alpha", "0.5"}), "--alpha is for");
  expect_usage(lti({"--dt", "0.1", "--discretized", arg("d"), "--view", "fft"}), "--view is \"fft\"");
  const auto with = [&](std::string_view name, const std::vector<double>& values, const Shape& shape,
                        std::string_view part, const Words& more = {}) {
    array("bad.npy", values, shape);
    Words words = lti(run);
    const auto place = std::find(words.begin(), words.end(), name);
    if (place == words.end())
      words.insert(words.end(), {std::string(name), arg("bad.npy")});
    else
      place[1] = arg("bad.npy");
    words.insert(words.end(), more.begin(), more.end());
    expect_error(words, part);
  };
  with("--A", {1, 2}, {2, 1}, "A is (2, 1), expected a square matrix");
  with("--A", {}, {0, 0}, "expected a square matrix");
  with("--A", {1}, {1}, "expected a square matrix");
  with("--A", {1, 2, NAN, 4}, {2, 2}, "element 2 of (2, 2) is nan, expected a finite number");
  with("--A", {1e308, 1e308, 1e308, 1e308}, {2, 2}, "past the range of a double");
  with("--B", {1, 2, 3}, {3}, "B is (3), expected (n) or (n, inputs) with A's n, 2");
  with("--C", {1, 2, 3}, {3}, "C is (3), expected");
  with("--C", {}, {0, 2}, "C is (0, 2), expected");
  with("--D", {1, 2}, {2}, "D is (2), expected (1, 1)");
  with("--input", {1, 2}, {1, 2}, "the input is (1, 2), expected (t) or (t, 1)");
  with("--input", {1, INFINITY}, {2}, "is inf, expected a finite number");
  with("--A", {20, 0, 0, -1}, {2, 2}, "I - 0.5 dt A is singular", {"--method", "bilinear"});
  with("--A", {10, 0, 0, -1}, {2, 2}, "I - 1 dt A is singular", {"--method", "backward-euler"});
  array("B.npy", {1, 1}, {2});
  for (const char* view : {"recurrence", "convolution", "scan"})
    with("--A", {6000, 0, 0, -1}, {2, 2}, "is unstable", {"--view", view});
  expect_error(lti({"--dt", "0.1", "--input", arg("ids.npy"), "--out", arg("missing/y.npy")}), "missing");
  expect_error(lti({"--dt", "0.1", "--input", arg("none.npy"), "--out", arg("y.npy")}), "none.npy");
}

TEST_F(LtiProgram, HippoWritesMatrices) {
  expect_done({"hippo", "--measure", "legs", "--n", "2", "--out", arg("legs")});
  EXPECT_EQ(read("legs/A.npy"), (std::vector<double>{-1, 0, -std::sqrt(3.0), -2}));
  EXPECT_EQ(read("legs/modes_V.npy").size(), 8u);
  const std::vector<double> Lambda = read("legs/modes_Lambda.npy");  // -1/2 -+ i sqrt(3)/2
  EXPECT_NEAR(Lambda[0], -0.5, 1e-15);
  EXPECT_NEAR(Lambda[1], -std::sqrt(0.75), 1e-15);
  const Json json = expect_done({"hippo", "--measure", "diag-lin", "--n", "4", "--out", arg("lin"), "--json"}).json();
  EXPECT_EQ(json["arrays"]["modes_Lambda"], Json::parse("[2, 2]"));
  EXPECT_EQ(read("lin/modes_Lambda.npy"), (std::vector<double>{-0.5, 0, -0.5, -M_PI}));
}

TEST_F(LtiProgram, HippoDrawsWhatIsRemembered) {
  std::vector<double> wave;
  for (int i = 0; i < 500; ++i) wave.push_back(std::sin(0.05 * i));
  array("wave.npy", wave, {500});
  for (const char* measure : {"legs", "legt", "fout"}) {
    const Json json = expect_done({"hippo", "--signal", arg("wave.npy"), "--plot", arg("wave.svg"), "--measure",
                                   measure, "--sizes", "2", "32", "--json"})
                          .json();
    ASSERT_EQ(json["states"].size(), 2u);
    EXPECT_LT(json["states"][1]["error"], json["states"][0]["error"]);
    const std::string svg = read_text(path("wave.svg"));
    EXPECT_TRUE(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"));
    EXPECT_NE(svg.find(">32 numbers<"), std::string::npos);
    EXPECT_EQ(svg.find("nan"), std::string::npos);
  }
  // A constant, and numbers near the ends of the range.
  for (const double value : {0.0, 3.0, -1e99}) {
    array("flat.npy", {value, value, value}, {3});
    expect_done({"hippo", "--signal", arg("flat.npy"), "--plot", arg("flat.svg"), "--sizes", "1", "3"});
    EXPECT_EQ(read_text(path("flat.svg")).find("nan"), std::string::npos) << value;
  }
}

TEST_F(LtiProgram, BadHippoIsAnError) {
  const Words draw = {"hippo", "--plot", arg("x.svg"), "--signal"};
  const auto with = [&](const Words& more) {
    Words words = draw;
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  expect_usage({"hippo"}, "nothing to do");
  expect_usage({"hippo", "--n", "4"}, "nothing to do");
  expect_usage({"hippo", "--out", arg("m")}, "needs --n");
  expect_usage({"hippo", "--out", arg("m"), "--n", "0"}, "--n is 0");
  expect_usage({"hippo", "--out", arg("m"), "--n", "999999999"}, "expected 1 to 4096");
  expect_usage({"hippo", "--out", arg("m"), "--n", "4", "--measure", "lagt"}, "--measure is \"lagt\"");
  expect_usage({"hippo", "--out", arg("m"), "--n", "4", "--window", "4"}, "--window is for --plot");
  expect_usage({"hippo", "--signal", arg("u.npy")}, "--plot is missing");
  expect_usage(with({arg("u.npy"), "--measure", "diag-lin"}), "expected legs, legt or fout with --plot");
  expect_usage(with({arg("u.npy"), "--sizes", "0"}), "--sizes is 0");
  expect_error({"hippo", "--out", arg("m"), "--n", "3", "--measure", "fout"}, "expected an even number");
  expect_error({"hippo", "--out", arg("m"), "--n", "3", "--measure", "diag-inv"}, "expected an even number");
  expect_error(with({arg("A.npy")}), "the signal is (2, 2), expected (t)");
  array("one.npy", {1}, {1});
  expect_error(with({arg("one.npy")}), "expected (t) with 2 to");
  array("nan.npy", {1, NAN}, {2});
  expect_error(with({arg("nan.npy")}), "expected a finite number");
  array("huge.npy", {1e308, -1e308, 1e308}, {3});
  expect_error(with({arg("huge.npy")}), "has the value 1e+308, expected at most");
  expect_error(with({arg("text.txt")}), "is no .npy file");
}

}  // namespace
}  // namespace ssm
