// Calls the library of solvers with matrices of many sizes, sound and broken, for the sanitizers.
//   obs_paths SEED ROUNDS: prints how many calls were answered and how many refused.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

extern "C" int graphopt_obs_path(const double*, const double*, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                 uint64_t, uint64_t, int32_t*, double*, char*, size_t);

int main(int count, char** words) {
  if (count != 3) return 2;
  std::mt19937 draw(static_cast<unsigned>(std::atoi(words[1])));
  const auto below = [&](uint64_t n) { return std::uniform_int_distribution<uint64_t>(0, n - 1)(draw); };
  std::normal_distribution<double> normal;
  int answered = 0, refused = 0;
  for (int round = 0; round < std::atoi(words[2]); ++round) {
    const uint64_t rows = 1 + below(20), columns = 1 + below(40);
    const uint64_t groups_of[] = {1, 4, 8, 16}, blocks_of[] = {1, 2, 4};
    const uint64_t group_rows = groups_of[below(4)], block = blocks_of[below(3)];
    const uint64_t of = below(2) ? 0 : 2 + below(6), keep = of ? 1 + below(of) : 0;
    const uint64_t groups = (rows + group_rows - 1) / group_rows, blocks = (columns + block - 1) / block;
    uint64_t most = blocks;
    if (of) {
      most = 0;
      for (uint64_t first = 0; first < blocks; first += of) {
        const uint64_t size = std::min(of, blocks - first);
        most += size > keep ? size - keep : 0;
      }
    }
    const bool too_many = below(10) == 0;
    const uint64_t steps = too_many ? most + 1 : below(most + 1);
    std::vector<double> weight(rows * columns), factor(columns * columns), inverse(columns * columns);
    for (double& each : weight) each = below(5) ? normal(draw) : 0.0;
    for (double& each : factor) each = normal(draw);
    for (uint64_t i = 0; i < columns; ++i) {
      for (uint64_t j = 0; j < columns; ++j) {
        double sum = i == j ? 0.1 : 0.0;
        for (uint64_t k = 0; k < columns; ++k) sum += factor[i * columns + k] * factor[j * columns + k];
        inverse[i * columns + j] = sum;
      }
    }
    // Numbers that no inverse has must end somewhere too.
    const double odd[] = {NAN, INFINITY, -1.0, 0.0};
    if (below(4) == 0) inverse[below(inverse.size())] = odd[below(4)];
    if (below(8) == 0) weight[below(weight.size())] = odd[below(4)];
    std::vector<int32_t> order(groups * steps, -1);
    std::vector<double> losses(groups * steps);
    char message[64];
    const int failed = graphopt_obs_path(weight.data(), inverse.data(), rows, columns, group_rows, block, keep, of, steps,
                                         1 + below(4), order.data(), losses.data(), message, sizeof message);
    if (failed != (too_many ? 1 : 0)) {
      std::fprintf(stderr, "round %d: %s\n", round, failed ? message : "too many steps were answered");
      return 1;
    }
    failed ? ++refused : ++answered;
    for (uint64_t group = 0; !failed && group < groups; ++group) {
      std::vector<int> seen(blocks);
      for (uint64_t step = 0; step < steps; ++step) {
        const int32_t id = order[group * steps + step];
        if (id < 0 || static_cast<uint64_t>(id) >= blocks || seen[static_cast<size_t>(id)]++) {
          std::fprintf(stderr, "round %d: block %d\n", round, id);
          return 1;
        }
      }
    }
  }
  std::printf("%d %d\n", answered, refused);
  return 0;
}
