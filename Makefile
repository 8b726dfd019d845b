# For those whose fingers type `make`. The build is CMake's (CMakePresets.json); see docs/building.md.
.PHONY: all test format clean
all:
	cmake --preset cpu
	cmake --build --preset cpu
test:
	./run_tests
format:
	find src tests examples \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) -print0 | xargs -0 clang-format -i
clean:
	rm -rf build
