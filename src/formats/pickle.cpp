#include "formats/pickle.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "core/error.h"
#include "formats/untrusted.h"

namespace ssm {
namespace {

using Kind = PickleValue::Kind;
using Values = std::deque<PickleValue>;

// A checkpoint's program takes about 200 bytes and 25 values a tensor: these allow 80,000 tensors and more, and keep a
// hostile program below half a gigabyte.
constexpr size_t kLongestProgram = size_t{16} << 20;
constexpr size_t kMostValues = size_t{2} << 20;

// The names of Python's pickletools.
enum class Op : uint8_t {
  mark = '(',
  stop = '.',
  pop = '0',
  pop_mark = '1',
  dup = '2',
  append = 'a',
  appends = 'e',
  binbytes = 'B',
  binfloat = 'G',
  binget = 'h',
  binint = 'J',
  binint1 = 'K',
  binint2 = 'M',
  binpersid = 'Q',
  binput = 'q',
  binstring = 'T',
  binunicode = 'X',
  build = 'b',
  dict = 'd',
  empty_dict = '}',
  empty_list = ']',
  empty_tuple = ')',
  global = 'c',
  list = 'l',
  long_binget = 'j',
  long_binput = 'r',
  none = 'N',
  reduce = 'R',
  setitem = 's',
  setitems = 'u',
  short_binbytes = 'C',
  short_binstring = 'U',
  tuple = 't',
  proto = 0x80,
  tuple1 = 0x85,
  tuple2 = 0x86,
  tuple3 = 0x87,
  newtrue = 0x88,
  newfalse = 0x89,
  long1 = 0x8a,
  short_binunicode = 0x8c,
  binunicode8 = 0x8d,
  binbytes8 = 0x8e,
  stack_global = 0x93,
  memoize = 0x94,
  frame = 0x95,
};

class Machine {
 public:
  Machine(Values& values, std::span<const std::byte> program, const Pickle::Globals& allowed, const std::string& where)
      : values_(values), reader_(program, where), allowed_(allowed), where_(where) {}

  const PickleValue* run() {
    while (true) {
      const auto op = reader_.number<Op>();
      if (op == Op::stop) break;
      if (!push_constant(op) && !use_memo(op) && !build_container(op)) call(op);
    }
    const PickleValue* result = pop();
    check(stack_.empty() && marks_.empty(), "leaves values behind");
    return result;
  }

 private:
  void check(bool holds, std::string_view what) const {
    require(holds, where_, ": the pickle ", what, " (before byte ", reader_.position(),
            "); the file is damaged or was not written by torch.save");
  }

  PickleValue& push(Kind kind) {
    check(values_.size() < kMostValues, "holds too many values");
    stack_.push_back(&values_.emplace_back());
    stack_.back()->kind = kind;
    return *stack_.back();
  }
  void push_integer(int64_t value) { push(Kind::integer).integer = value; }
  void push_text(std::string_view text) { push(Kind::text).text = text; }

  PickleValue* pop() {
    check(stack_.size() > (marks_.empty() ? 0 : marks_.back()), "takes a value from an empty stack");
    PickleValue* value = stack_.back();
    stack_.pop_back();
    return value;
  }

  PickleValue& top(Kind kind, std::string_view what) {
    PickleValue* value = pop();
    check(value->is(kind), what);
    stack_.push_back(value);
    return *value;
  }

  std::vector<const PickleValue*> pop_many(size_t count) {
    check(stack_.size() >= (marks_.empty() ? 0 : marks_.back()) + count, "takes values from an empty stack");
    std::vector<const PickleValue*> items(stack_.end() - static_cast<ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return items;
  }

  std::vector<const PickleValue*> pop_to_mark() {
    check(!marks_.empty(), "has no mark where one is needed");
    auto items = pop_many(stack_.size() - marks_.back());
    marks_.pop_back();
    return items;
  }

  // Two's complement of up to 255 bytes, least significant first.
  void push_long(std::span<const std::byte> digits) {
    if (digits.size() > sizeof(int64_t)) {
      push(Kind::other);
      return;
    }
    const bool negative = !digits.empty() && (digits.back() & std::byte{0x80}) != std::byte{0};
    int64_t value = negative ? -1 : 0;
    std::copy(digits.begin(), digits.end(), reinterpret_cast<std::byte*>(&value));
    push_integer(value);
  }

  bool push_constant(Op op) {
    switch (op) {
      case Op::none:
      case Op::newtrue:
      case Op::newfalse: push(Kind::other); return true;
      case Op::binfloat: reader_.take(sizeof(double)), push(Kind::other); return true;
      case Op::binbytes: reader_.take(reader_.number<uint32_t>()), push(Kind::other); return true;
      case Op::short_binbytes: reader_.take(reader_.number<uint8_t>()), push(Kind::other); return true;
      case Op::binbytes8: reader_.take(reader_.number<uint64_t>()), push(Kind::other); return true;
      case Op::binint: push_integer(reader_.number<int32_t>()); return true;
      case Op::binint1: push_integer(reader_.number<uint8_t>()); return true;
      case Op::binint2: push_integer(reader_.number<uint16_t>()); return true;
      case Op::long1: push_long(reader_.take(reader_.number<uint8_t>())); return true;
      case Op::binunicode:
      case Op::binstring: push_text(reader_.text(reader_.number<uint32_t>())); return true;
      case Op::short_binunicode:
      case Op::short_binstring: push_text(reader_.text(reader_.number<uint8_t>())); return true;
      case Op::binunicode8: push_text(reader_.text(reader_.number<uint64_t>())); return true;
      default: return false;
    }
  }

  void put(size_t key) {
    check(!stack_.empty() && memo_.size() < kMostValues, "remembers what is not there");
    memo_[key] = stack_.back();
  }
  void get(size_t key) {
    const auto found = memo_.find(key);
    check(found != memo_.end(), "recalls what it never stored");
    stack_.push_back(found->second);
  }

  bool use_memo(Op op) {
    switch (op) {
      case Op::binput: put(reader_.number<uint8_t>()); return true;
      case Op::long_binput: put(reader_.number<uint32_t>()); return true;
      case Op::memoize: put(memo_.size()); return true;
      case Op::binget: get(reader_.number<uint8_t>()); return true;
      case Op::long_binget: get(reader_.number<uint32_t>()); return true;
      case Op::pop: pop(); return true;
      case Op::pop_mark: pop_to_mark(); return true;
      case Op::dup: stack_.push_back(pop()), stack_.push_back(stack_.back()); return true;
      case Op::mark: marks_.push_back(stack_.size()); return true;
      case Op::proto: {
        const int protocol = reader_.number<uint8_t>();
        require(2 <= protocol && protocol <= 5, where_, ": pickle protocol ", protocol, ", expected 2 to 5");
        return true;
      }
      case Op::frame: reader_.take(sizeof(uint64_t)); return true;  // a hint for buffering
      default: return false;
    }
  }

  void extend(Kind kind, const std::vector<const PickleValue*>& items) {
    PickleValue& container =
        top(kind, kind == Kind::dict ? "assigns to what is no dict" : "appends to what is no list");
    check(kind != Kind::dict || items.size() % 2 == 0, "has a key without a value");
    container.items.insert(container.items.end(), items.begin(), items.end());
  }

  bool build_container(Op op) {
    const auto fresh = [&](Kind kind, std::vector<const PickleValue*> items) {
      check(kind != Kind::dict || items.size() % 2 == 0, "has a key without a value");
      push(kind).items = std::move(items);
    };
    switch (op) {
      case Op::empty_tuple: fresh(Kind::tuple, {}); return true;
      case Op::tuple1: fresh(Kind::tuple, pop_many(1)); return true;
      case Op::tuple2: fresh(Kind::tuple, pop_many(2)); return true;
      case Op::tuple3: fresh(Kind::tuple, pop_many(3)); return true;
      case Op::tuple: fresh(Kind::tuple, pop_to_mark()); return true;
      case Op::empty_list: fresh(Kind::list, {}); return true;
      case Op::list: fresh(Kind::list, pop_to_mark()); return true;
      case Op::empty_dict: fresh(Kind::dict, {}); return true;
      case Op::dict: fresh(Kind::dict, pop_to_mark()); return true;
      case Op::append: extend(Kind::list, pop_many(1)); return true;
      case Op::appends: extend(Kind::list, pop_to_mark()); return true;
      case Op::setitem: extend(Kind::dict, pop_many(2)); return true;
      case Op::setitems: extend(Kind::dict, pop_to_mark()); return true;
      default: return false;
    }
  }

  void push_global(std::string_view module, std::string_view name) {
    const std::string full = std::string(module) + "." + std::string(name);
    const auto found = allowed_.find(full);
    require(found != allowed_.end(), where_, ": the pickle asks for ", printable(full),
            ", which is refused: loading never runs code. Save the weights alone, with "
            "torch.save(model.state_dict(), FILE)");
    push(Kind::global).text = found->first;
  }

  void reduce() {
    const PickleValue* arguments = pop();
    const PickleValue* callee = pop();
    check(callee->is(Kind::global) && arguments->is(Kind::tuple), "calls what cannot be called");
    const Pickle::Global how = allowed_.find(callee->text)->second;
    require(how != Pickle::Global::name, where_, ": the pickle calls ", callee->text,
            ", which is refused: loading never runs code");
    check(how != Pickle::Global::dict || arguments->items.empty(), "makes a dict from arguments");
    PickleValue& result = push(how == Pickle::Global::dict ? Kind::dict : Kind::call);
    result.text = callee->text;
    if (how == Pickle::Global::function) result.items = {arguments};
  }

  // The rest: what would run code in Python.
  void call(Op op) {
    switch (op) {
      case Op::global: {
        const std::string_view module = reader_.line();
        return push_global(module, reader_.line());
      }
      case Op::stack_global: {
        const PickleValue* name = pop();
        const PickleValue* module = pop();
        check(name->is(Kind::text) && module->is(Kind::text), "names a global by what is no text");
        return push_global(module->text, name->text);
      }
      case Op::reduce: return reduce();
      case Op::build: {  // attributes of an OrderedDict (_metadata) or a tensor: of no use here
        pop();
        const PickleValue* target = pop();
        check(target->is(Kind::dict) || target->is(Kind::call), "sets attributes of a plain value");
        stack_.push_back(const_cast<PickleValue*>(target));
        return;
      }
      case Op::binpersid: {
        const PickleValue* id = pop();
        push(Kind::persistent).items = {id};
        return;
      }
      default:
        throw Error(where_, ": pickle opcode ", static_cast<int>(op), " before byte ", reader_.position(),
                    " is refused: it is none that torch.save writes for weights; the file is damaged or holds more");
    }
  }

  Values& values_;
  ByteReader reader_;
  const Pickle::Globals& allowed_;
  const std::string& where_;
  std::vector<PickleValue*> stack_;
  std::vector<size_t> marks_;  // stack heights
  std::unordered_map<size_t, PickleValue*> memo_;
};

}  // namespace

Pickle::Pickle(std::span<const std::byte> program, const Globals& allowed, const std::string& where) {
  require(program.size() <= kLongestProgram, where, ": a pickle of ", program.size(), " bytes, expected at most ",
          kLongestProgram);
  result_ = Machine(values_, program, allowed, where).run();
}

}  // namespace ssm
