// Runs models with the kernels, without a header of ONNX Runtime, so that it can be built for any platform:
//   host LIBRARY THREADS FOLDER...
// A folder holds model.onnx and input0.bin, input1.bin ...; output0.bin ... are written. A .bin is int32 type, int32
// rank, int64 sizes, elements. Prints the runtime's version and the instruction set that the kernels chose.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "ort_host.h"

namespace {

ort_host::Tensor read(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) throw std::runtime_error(path + " cannot be opened");
  std::vector<unsigned char> bytes(1 << 26);
  bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file));
  std::fclose(file);
  int32_t head[2];
  std::memcpy(head, bytes.data(), sizeof head);
  ort_host::Tensor made;
  made.type = head[0];
  made.dims.resize(static_cast<size_t>(head[1]));
  const size_t start = sizeof head + 8 * made.dims.size();
  if (!made.dims.empty()) std::memcpy(made.dims.data(), bytes.data() + sizeof head, 8 * made.dims.size());
  made.bytes.assign(bytes.begin() + static_cast<std::ptrdiff_t>(start), bytes.end());
  return made;
}

void write(const std::string& path, const ort_host::Tensor& tensor) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) throw std::runtime_error(path + " cannot be written");
  const int32_t head[2] = {tensor.type, static_cast<int32_t>(tensor.dims.size())};
  std::fwrite(head, sizeof head, 1, file);
  std::fwrite(tensor.dims.data(), 8, tensor.dims.size(), file);
  std::fwrite(tensor.bytes.data(), 1, tensor.bytes.size(), file);
  std::fclose(file);
}

void run(const std::string& library, int threads, const std::string& folder) {
  const ort_host::Session session(folder + "/model.onnx", library, threads);
  std::vector<ort_host::Tensor> feeds;
  for (size_t i = 0; i < session.inputs().size(); ++i) feeds.push_back(read(folder + "/input" + std::to_string(i) + ".bin"));
  const std::vector<ort_host::Tensor> made = session.run(feeds);
  for (size_t i = 0; i < made.size(); ++i) write(folder + "/output" + std::to_string(i) + ".bin", made[i]);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string library = argv[1];
  void* const handle = dlopen(argv[1], RTLD_NOW);
  if (handle == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const auto report = reinterpret_cast<const char* (*)()>(dlsym(handle, "graphopt_isa_report"));
  std::printf("%s %s\n", ort_host::Session::runtime_version().c_str(), report());
  for (int i = 3; i < argc; ++i) {
    try {
      run(library, std::atoi(argv[2]), argv[i]);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", argv[i], error.what());
      return 1;
    }
  }
  return 0;
}
