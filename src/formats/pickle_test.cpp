// The pickle machine: plain values are built as Python would, calls are data, everything else is refused.
#include "formats/pickle.h"

#include <gtest/gtest.h>

#include "formats/test_files.h"

namespace ssm {
namespace {

using namespace std::string_literals;
using Kind = PickleValue::Kind;

const Pickle::Globals kAllowed = {
    {"m.Name", Pickle::Global::name}, {"m.Dict", Pickle::Global::dict}, {"m.make", Pickle::Global::function}};

// A value in Python's notation, calls as make(...), unknown values as ?.
std::string shown(const PickleValue& value) {
  const auto items = [&](std::string_view open, std::string_view close) {
    std::string result(open);
    for (size_t i = 0; i < value.items.size(); ++i) result += (i ? "," : "") + shown(*value.items[i]);
    return result + std::string(close);
  };
  switch (value.kind) {
    case Kind::other: return "?";
    case Kind::integer: return std::to_string(value.integer);
    case Kind::text: return "'" + std::string(value.text) + "'";
    case Kind::tuple: return items("(", ")");
    case Kind::list: return items("[", "]");
    case Kind::dict: return items("{", "}");
    case Kind::global: return std::string(value.text);
    case Kind::call: return std::string(value.text) + shown(*value.items[0]);
    case Kind::persistent: return items("<", ">");
  }
  return "";
}

std::string run(const std::string& program) {
  const std::span<const char> signs(program);
  const Pickle pickle(std::as_bytes(signs), kAllowed, "file");
  return shown(pickle.result());
}

TEST(Pickle, Constants) {
  EXPECT_EQ(run("\x80\x02N."), "?");
  EXPECT_EQ(run("K\xff."), "255");
  EXPECT_EQ(run("M\xff\xff."), "65535");
  EXPECT_EQ(run("J\xfe\xff\xff\xff."), "-2");
  EXPECT_EQ(run("\x8a\x00."s), "0");
  EXPECT_EQ(run("\x8a\x01\xff."), "-1");
  EXPECT_EQ(run("\x8a\x02\xff\x00."s), "255");
  EXPECT_EQ(run("\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80."s), std::to_string(INT64_MIN));
  EXPECT_EQ(run("\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01."s), "?");
  EXPECT_EQ(run("G\x3f\xf0\x00\x00\x00\x00\x00\x00."s), "?");
  EXPECT_EQ(run("X\x02\x00\x00\x00hi."s), "'hi'");
  EXPECT_EQ(run("\x8c\x02hi."), "'hi'");
  EXPECT_EQ(run("\x8d\x02\x00\x00\x00\x00\x00\x00\x00hi."s), "'hi'");
  EXPECT_EQ(run("U\x02hi."), "'hi'");
  EXPECT_EQ(run("T\x02\x00\x00\x00hi."s), "'hi'");
  EXPECT_EQ(run("(\x88\x89"
                "C\x01xB\x01\x00\x00\x00x\x8e\x01\x00\x00\x00\x00\x00\x00\x00xt."s),
            "(?,?,?,?,?)");
}

TEST(Pickle, Containers) {
  EXPECT_EQ(run(")."), "()");
  EXPECT_EQ(run("K\x01\x85."), "(1)");
  EXPECT_EQ(run("K\x01K\x02\x86."), "(1,2)");
  EXPECT_EQ(run("K\x01K\x02K\x03\x87."), "(1,2,3)");
  EXPECT_EQ(run("(K\x01K\x02(K\x03tt."), "(1,2,(3))");
  EXPECT_EQ(run("]K\x01"
                "a(K\x02K\x03"
                "e."),
            "[1,2,3]");
  EXPECT_EQ(run("(K\x01K\x02l."), "[1,2]");
  EXPECT_EQ(run("}K\x01K\x02s(K\x03K\x04K\x05K\x06u."), "{1,2,3,4,5,6}");
  EXPECT_EQ(run("(K\x01K\x02"
                "d."),
            "{1,2}");
  EXPECT_EQ(run("K\x01K\x02"
                "0."),
            "1");
  EXPECT_EQ(run("K\x01(K\x02K\x03"
                "1."),
            "1");
  EXPECT_EQ(run("K\x01"
                "2\x86."),
            "(1,1)");
}

TEST(Pickle, MemoSharesValues) {
  EXPECT_EQ(run("]q\x07K\x01"
                "ah\x07\x86."),
            "([1],[1])");
  EXPECT_EQ(run("]r\x07\x00\x00\x00"
                "j\x07\x00\x00\x00K\x01"
                "a\x86."s),
            "([1],[1])");
  EXPECT_EQ(run("\x80\x04\x95\x09\x00\x00\x00\x00\x00\x00\x00]\x94K\x01"
                "ah\x00\x86."s),
            "([1],[1])");
}

TEST(Pickle, ValuesMayContainThemselves) {
  const std::string program =
      "]q\x01h\x01"
      "a.";
  const std::span<const char> signs(program);
  const Pickle pickle(std::as_bytes(signs), kAllowed, "file");
  EXPECT_EQ(pickle.result().items[0], &pickle.result());
}

TEST(Pickle, AllowedGlobalsBecomeData) {
  EXPECT_EQ(run("cm\nName\n."), "m.Name");
  EXPECT_EQ(run("\x8c\x01m\x8c\x04Name\x93."), "m.Name");
  EXPECT_EQ(run("cm\nmake\nK\x01\x85R."), "m.make(1)");
  EXPECT_EQ(run("cm\nDict\n)RK\x01K\x02s}b."), "{1,2}");
  EXPECT_EQ(run("K\x05Q."), "<5>");
}

TEST(Pickle, CallsAreRefusedByName) {
  EXPECT_TRUE(fails_with("asks for os.system, which is refused: loading never runs code", [] {
    run("\x80\x02"
        "cos\nsystem\nX\x04\x00\x00\x00true\x85R."s);
  }));
  EXPECT_TRUE(fails_with("asks for builtins.eval", [] {
    run("\x8c\x08"
        "builtins\x8c\x04"
        "eval\x93)R.");
  }));
  EXPECT_TRUE(fails_with("asks for m.Nam?e", [] {
    run("cm\nNam\x1b"
        "e\n.");
  }));
  EXPECT_TRUE(fails_with("the pickle calls m.Name", [] { run("cm\nName\n)R."); }));
  EXPECT_TRUE(fails_with("makes a dict from arguments", [] { run("cm\nDict\nK\x01\x85R."); }));
  EXPECT_TRUE(fails_with("calls what cannot be called", [] { run("K\x01)R."); }));
  EXPECT_TRUE(fails_with("calls what cannot be called", [] { run("cm\nmake\n]R."); }));
  EXPECT_TRUE(fails_with("sets attributes of a plain value", [] { run("]}b."); }));
  EXPECT_TRUE(fails_with("names a global by what is no text", [] { run("K\x01K\x02\x93."); }));
  for (const std::string_view op : {"i", "o", "\x81", "\x92", "\x82", "I", "S", "F", "P", "\x8f", "\x97"})
    EXPECT_TRUE(fails_with(text("opcode ", int{static_cast<uint8_t>(op[0])}), [&] { run("N" + std::string(op)); }));
}

TEST(Pickle, DamagedProgramsAreErrors) {
  const auto refused = [](const std::string& program, std::string_view part) {
    SCOPED_TRACE(program);
    EXPECT_TRUE(fails_with(part, [&] { run(program); }));
  };
  refused("", "truncated");
  refused("N", "truncated");
  refused("X\xff\xff\xff\xffhi.", "needs 4294967295 bytes");
  refused("\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", "needs 18446744073709551615 bytes");
  refused("cos", "a line has no end");
  refused("\x80\x01N.", "pickle protocol 1, expected 2 to 5");
  refused("\x80\x06N.", "pickle protocol 6, expected 2 to 5");
  refused(".", "takes a value from an empty stack");
  refused("NN.", "leaves values behind");
  refused("N(.", "takes a value from an empty stack");
  refused("N(0.", "takes a value from an empty stack");
  refused("t.", "has no mark");
  refused("N\x86.", "takes values from an empty stack");
  refused("N(N\x86t.", "takes values from an empty stack");
  refused("]K\x01K\x02s.", "assigns to what is no dict");
  refused(
      "}K\x01"
      "a.",
      "appends to what is no list");
  refused("}(K\x01u.", "has a key without a value");
  refused(
      "(K\x01"
      "d.",
      "has a key without a value");
  refused("h\x01.", "recalls what it never stored");
  refused("q\x01.", "remembers what is not there");
}

TEST(Pickle, HugeProgramsAreRefused) {
  EXPECT_TRUE(fails_with("holds too many values", [] { run("(" + std::string(3 << 20, 'N') + "t."); }));
  EXPECT_TRUE(fails_with("a pickle of 17825792 bytes", [] { run(std::string(17 << 20, '(')); }));
}

TEST(Pickle, DeepNestingIsNoRecursion) {
  std::string program = ")";
  for (int i = 0; i < 1000000; ++i) program += '\x85';
  const std::string whole = program + ".";
  const std::span<const char> signs(whole);
  const Pickle pickle(std::as_bytes(signs), kAllowed, "file");
  EXPECT_TRUE(pickle.result().is(Kind::tuple));
}

}  // namespace
}  // namespace ssm
