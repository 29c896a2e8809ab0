# cmake --install BUILD --prefix DIR: bin/trireme, the headers, the static libraries and a CMake package, with which a project outside the tree
# adds families and attention backends (tests/package/app):
#   find_package(trireme REQUIRED)
#   target_link_libraries(app PRIVATE trireme::trireme)    # and call trireme::Main(argc, argv, extensions)
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(trireme_archives "")
set(trireme_external "")

# Adds what `target` links: own static libraries to trireme_archives, users before what they use as the linker wants it; the rest to trireme_external.
macro(trireme_collect target)
  get_target_property(links_of_${target} ${target} LINK_LIBRARIES)
  foreach(item IN LISTS links_of_${target})
    set(own FALSE)
    if(TARGET ${item})
      get_target_property(type ${item} TYPE)
      get_target_property(imported ${item} IMPORTED)
      if(type STREQUAL STATIC_LIBRARY AND NOT imported)
        set(own TRUE)
      endif()
    endif()
    if(NOT own)
      list(APPEND trireme_external ${item})
    elseif(NOT ${item} IN_LIST trireme_archives)
      trireme_collect(${item})
      list(PREPEND trireme_archives ${item})
    endif()
  endforeach()
endmacro()
trireme_collect(trireme)
list(FILTER trireme_external EXCLUDE REGEX "^::@|NOTFOUND")
list(REMOVE_DUPLICATES trireme_external)

# The program finds libtorch where the build found it.
set_target_properties(trireme PROPERTIES INSTALL_RPATH "${CMAKE_BUILD_RPATH}")
install(TARGETS trireme RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS ${trireme_archives} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}/trireme)

set(include_folder ${CMAKE_INSTALL_INCLUDEDIR}/trireme)
foreach(layer launch configs kernels data parallel models trainer)
  install(DIRECTORY ${CMAKE_SOURCE_DIR}/${layer} DESTINATION ${include_folder} FILES_MATCHING PATTERN "*.h" PATTERN recipes EXCLUDE)
  install(DIRECTORY ${CMAKE_BINARY_DIR}/${layer} DESTINATION ${include_folder} FILES_MATCHING PATTERN "*.pb.h" PATTERN CMakeFiles EXCLUDE)
endforeach()
install(DIRECTORY ${CMAKE_SOURCE_DIR}/configs/recipes DESTINATION ${CMAKE_INSTALL_DATADIR}/trireme)

set(trireme_archive_files "")
foreach(archive IN LISTS trireme_archives)
  list(APPEND trireme_archive_files "\${trireme_archives}/lib${archive}.a")
endforeach()
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/trireme)
configure_package_config_file(cmake/TriremeConfig.cmake.in ${CMAKE_BINARY_DIR}/trireme-config.cmake
  INSTALL_DESTINATION ${package_folder} PATH_VARS CMAKE_INSTALL_LIBDIR include_folder)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/trireme-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/trireme-config.cmake ${CMAKE_BINARY_DIR}/trireme-config-version.cmake cmake/Dependencies.cmake
  DESTINATION ${package_folder})
