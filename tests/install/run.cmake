# ctest `install`: installs a build to a fresh prefix, then configures, builds and runs a project outside the tree that
# finds it with find_package(ssm).
#   cmake -DBUILD_DIR=… -DCONFIG=… -DGENERATOR=… -DCXX=… -P run.cmake
set(work ${BUILD_DIR}/install_test)
set(prefix ${work}/prefix)
file(REMOVE_RECURSE ${work})

macro(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endmacro()

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --config ${CONFIG} --prefix ${prefix})
foreach(project IN ITEMS tests/install examples)
  cmake_path(SET source NORMALIZE ${CMAKE_CURRENT_LIST_DIR}/../../${project})
  cmake_path(GET project FILENAME name)
  # Copied, so that no header of the source tree is in reach.
  file(COPY ${source} DESTINATION ${work}/source)
  run(${CMAKE_COMMAND} -S ${work}/source/${name} -B ${work}/${name} -G ${GENERATOR} -DCMAKE_BUILD_TYPE=${CONFIG}
      -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_PREFIX_PATH=${prefix})
  run(${CMAKE_COMMAND} --build ${work}/${name} --config ${CONFIG})
endforeach()
run(${work}/install/consumer)
if(EXISTS ${prefix}/bin/ssm)
  run(${prefix}/bin/ssm --version)
endif()
