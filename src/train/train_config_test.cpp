// Which settings may change when a run goes on.
#include "train/train_config.h"

#include <gtest/gtest.h>

#include "formats/test_files.h"

namespace ssm {
namespace {

TEST(TrainConfigFields, ReadBackWhatTheyWrite) {
  TrainConfig written;
  written.preset = "bytes-1m";
  written.data = {"a", "b"};
  written.rate.lr = 1.0 / 3;
  written.optimizer.eps = 1e-12;
  written.keep = 7;
  TrainConfig read;
  read_json(read.fields(), write_json(written.fields()), "settings");
  EXPECT_EQ(write_json(read.fields()), write_json(written.fields()));
  EXPECT_EQ(read.rate.lr, 1.0 / 3);
}

TEST(TrainConfigFields, BadSettingsNameTheFlag) {
  const auto with = [](auto change) {
    TrainConfig config;
    change(config);
    return [config] { config.check(); };
  };
  EXPECT_NO_THROW(with([](auto&) {})());
  EXPECT_TRUE(fails_with("--length 0", with([](auto& c) { c.length = 0; })));
  EXPECT_TRUE(fails_with("--batch -3", with([](auto& c) { c.batch = -3; })));
  EXPECT_TRUE(fails_with("tokens, expected at most", with([](auto& c) { c.batch = c.length = 1 << 20; })));
  EXPECT_TRUE(fails_with("--accumulate 0", with([](auto& c) { c.accumulate = 0; })));
  EXPECT_TRUE(fails_with("--beta2 1", with([](auto& c) { c.optimizer.beta2 = 1; })));
  EXPECT_TRUE(fails_with("--eps 0", with([](auto& c) { c.optimizer.eps = 0; })));
  EXPECT_TRUE(fails_with("--clip -1", with([](auto& c) { c.optimizer.clip = -1; })));
  EXPECT_TRUE(fails_with("--validation 1", with([](auto& c) { c.validation = 1; })));
  EXPECT_TRUE(fails_with("--eval-tokens 1", with([](auto& c) { c.eval_tokens = 1; })));
  EXPECT_TRUE(fails_with("--save-every -1", with([](auto& c) { c.save_every = -1; })));
  EXPECT_TRUE(fails_with("--keep -1", with([](auto& c) { c.keep = -1; })));
}

TEST(TrainConfigResume, TakesWhatMayChangeAndRefusesTheRest) {
  TrainConfig recorded, asked;
  recorded.rate.steps = 10;
  recorded.rate.lr = 1e-3;
  recorded.data = {absolute_path("old.txt")};
  asked.rate.steps = 20;
  asked.rate.lr = 2e-3;
  asked.data = {"new.txt"};
  asked.batch = recorded.batch;

  const auto resumed = [&](const std::set<std::string>& given) {
    return resumed_config(recorded, asked, given, "runs/a");
  };
  EXPECT_EQ(resumed({}).rate.steps, 10);  // defaults of the command line are not what the user asked for
  EXPECT_EQ(resumed({"steps"}).rate.steps, 20);
  EXPECT_EQ(resumed({"data"}).data, std::vector<std::string>{absolute_path("new.txt")});
  EXPECT_NO_THROW(resumed({"batch", "seed", "quiet"}));  // as recorded, or not a setting
  EXPECT_TRUE(fails_with("--lr is 0.002, the run in runs/a has 0.001", [&] { resumed({"lr"}); }));
}

TEST(TrainConfigResume, ComparesPathsAsFiles) {
  TrainConfig recorded, asked;
  recorded.init = absolute_path("models/a");
  asked.init = "models/./a";
  EXPECT_NO_THROW(resumed_config(recorded, asked, {"init"}, "runs/a"));
  asked.init = "models/b";
  EXPECT_TRUE(fails_with("--init is", [&] { resumed_config(recorded, asked, {"init"}, "runs/a"); }));
}

}  // namespace
}  // namespace ssm
