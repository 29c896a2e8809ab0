# cmake --install BUILD --prefix DIR: bin/trireme with the libraries it loads, public headers, static libraries and a CMake package, with which a
# project outside the tree adds families and attention backends (tests/package/app):
#   find_package(trireme REQUIRED)
#   target_link_libraries(app PRIVATE trireme::trireme)    # and call trireme::Main(argc, argv, extensions)
# DIR may be moved, and needs the checkout no more; what comes from the system's packages (MPI, protobuf, abseil) stays outside.
option(TRIREME_INSTALL_LIBTORCH "cmake --install copies libtorch and what it needs (500 MB; with CUDA 3 GB); OFF: it is used where the build found it" ON)
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

set(libtorch_folder ${CMAKE_INSTALL_LIBDIR}/trireme/libtorch)  # with lib/ and include/, as TRIREME_TORCH_DIR is
if(TRIREME_INSTALL_LIBTORCH)
  file(RELATIVE_PATH libraries_from_program /${CMAKE_INSTALL_BINDIR} /${libtorch_folder}/lib)
  set_target_properties(trireme PROPERTIES INSTALL_RPATH "$ORIGIN/${libraries_from_program}")
  install(CODE "set(trireme_program \"$<TARGET_FILE:trireme>\")\nset(trireme_library_folder \"${libtorch_folder}/lib\")")
  install(SCRIPT cmake/InstallLibraries.cmake)
  foreach(folder ATen c10 torch caffe2)
    install(DIRECTORY ${TRIREME_TORCH_DIR}/include/${folder} DESTINATION ${libtorch_folder}/include)
  endforeach()
else()
  set_target_properties(trireme PROPERTIES INSTALL_RPATH "${CMAKE_BUILD_RPATH}")
endif()
install(TARGETS trireme RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS ${trireme_archives} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}/trireme)

# Where the contract with projects outside begins; what these include is installed too.
set(TRIREME_PUBLIC_HEADERS trainer/main.h models/engine/extensions.h models/spec/family.h models/parts/draft.h models/parts/projections.h
    parallel/layers/functions.h kernels/attention/attention.h)
set(include_folder ${CMAKE_INSTALL_INCLUDEDIR}/trireme)
install(CODE "set(trireme_public_headers ${TRIREME_PUBLIC_HEADERS})
set(trireme_source_folder \"${CMAKE_SOURCE_DIR}\")
set(trireme_binary_folder \"${CMAKE_BINARY_DIR}\")
set(trireme_include_folder \"${include_folder}\")")
install(SCRIPT cmake/InstallHeaders.cmake)
install(DIRECTORY ${CMAKE_SOURCE_DIR}/configs/recipes DESTINATION ${CMAKE_INSTALL_DATADIR}/trireme)

set(trireme_archive_files "")
foreach(archive IN LISTS trireme_archives)
  list(APPEND trireme_archive_files "\${trireme_archives}/lib${archive}.a")
endforeach()
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/trireme)
configure_package_config_file(cmake/TriremeConfig.cmake.in ${CMAKE_BINARY_DIR}/trireme-config.cmake
  INSTALL_DESTINATION ${package_folder} PATH_VARS CMAKE_INSTALL_LIBDIR include_folder libtorch_folder)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/trireme-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/trireme-config.cmake ${CMAKE_BINARY_DIR}/trireme-config-version.cmake cmake/Dependencies.cmake
  DESTINATION ${package_folder})

# What the program itself prints.
install(CODE "
  foreach(shell_and_file IN ITEMS bash:bash-completion/completions/trireme zsh:zsh/site-functions/_trireme)
    string(REGEX MATCH \"^[^:]+\" shell \${shell_and_file})
    string(REGEX REPLACE \"^[^:]+:\" \"\" name \${shell_and_file})
    set(file \"${CMAKE_BINARY_DIR}/completion/\${name}\")
    get_filename_component(folder \${name} DIRECTORY)
    file(MAKE_DIRECTORY \"${CMAKE_BINARY_DIR}/completion/\${folder}\")
    execute_process(COMMAND \"$<TARGET_FILE:trireme>\" completion \${shell} OUTPUT_FILE \"\${file}\" COMMAND_ERROR_IS_FATAL ANY)
    file(INSTALL \"\${file}\" DESTINATION \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DATADIR}/\${folder}\")
  endforeach()")
