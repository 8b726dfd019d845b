# `cmake --install`: the library, the headers under include/ssm/ in their folders, and the package that
# find_package(ssm) reads. The program is installed where it is defined.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/ssm)
install(TARGETS ssm EXPORT ssmTargets)
install(EXPORT ssmTargets NAMESPACE ssm:: DESTINATION ${package_dir})
install(
  DIRECTORY src/
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ssm
  FILES_MATCHING
  PATTERN "*.h"
  PATTERN "*-inl.h" EXCLUDE
  PATTERN cli EXCLUDE)

configure_package_config_file(cmake/ssmConfig.cmake.in ssmConfig.cmake INSTALL_DESTINATION ${package_dir})
# 0.x promises nothing from one minor version to the next.
write_basic_package_version_file(ssmConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/ssmConfig.cmake ${PROJECT_BINARY_DIR}/ssmConfigVersion.cmake
              cmake/dependencies.cmake DESTINATION ${package_dir})
