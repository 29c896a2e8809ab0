# Headers are precompiled once for all targets: with and without tensors, and of both once more with GoogleTest. All targets therefore compile
# with the same options; -fPIC stands for executables too, since a precompiled header is of one kind of code.
function(trireme_precompiled name)
  cmake_parse_arguments(ARG "" "" "HEADERS;LINK" ${ARGN})
  file(WRITE ${CMAKE_BINARY_DIR}/pch/${name}.cc "")
  add_library(${name} OBJECT EXCLUDE_FROM_ALL ${CMAKE_BINARY_DIR}/pch/${name}.cc)
  target_link_libraries(${name} PRIVATE ${ARG_LINK})
  target_precompile_headers(${name} PRIVATE ${ARG_HEADERS})
endfunction()

trireme_precompiled(pch_plain HEADERS ${CMAKE_SOURCE_DIR}/cmake/pch/plain.h LINK absl::statusor absl::str_format protobuf::libprotobuf nlohmann_json::nlohmann_json)
if(TRIREME_TESTS)
  trireme_precompiled(pch_plain_test HEADERS ${CMAKE_SOURCE_DIR}/cmake/pch/plain.h <gtest/gtest.h>
    LINK absl::statusor absl::str_format protobuf::libprotobuf nlohmann_json::nlohmann_json GTest::gtest)
endif()
if(NOT TRIREME_SANITIZE)
  trireme_precompiled(pch_tensor HEADERS ${CMAKE_SOURCE_DIR}/cmake/pch/tensor.h LINK trireme_torch absl::statusor absl::str_format protobuf::libprotobuf nlohmann_json::nlohmann_json)
  if(TRIREME_TESTS)
    trireme_precompiled(pch_tensor_test HEADERS ${CMAKE_SOURCE_DIR}/cmake/pch/tensor.h <gtest/gtest.h>
      LINK trireme_torch absl::statusor absl::str_format protobuf::libprotobuf nlohmann_json::nlohmann_json GTest::gtest)
  endif()
endif()

# trireme_proto(SOURCES_VARIABLE FILE.proto ...): C++ of protos; `folder/name.proto` is included as "folder/name.pb.h".
function(trireme_proto sources_variable)
  set(sources "")
  foreach(proto IN LISTS ARGN)
    file(RELATIVE_PATH path ${CMAKE_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/${proto})
    string(REGEX REPLACE "\\.proto$" "" stem ${path})
    add_custom_command(
      OUTPUT ${CMAKE_BINARY_DIR}/${stem}.pb.cc ${CMAKE_BINARY_DIR}/${stem}.pb.h
      COMMAND protobuf::protoc -I ${CMAKE_SOURCE_DIR} --cpp_out=${CMAKE_BINARY_DIR} ${path}
      DEPENDS ${proto}
      WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
      VERBATIM)
    list(APPEND sources ${CMAKE_BINARY_DIR}/${stem}.pb.cc ${CMAKE_BINARY_DIR}/${stem}.pb.h)
  endforeach()
  set(${sources_variable} ${sources} PARENT_SCOPE)
endfunction()

# trireme_unity(TARGET SOURCE ...): the sources of a folder are compiled as one where TRIREME_UNITY is ON. GCC instantiates what the precompiled
# headers left open once more in every file: two seconds for a file that sees a tensor. Within a folder no name may mean
# two things, not even in unnamed namespaces. CMake leaves out files that have compiler options of their own.
function(trireme_unity target)
  foreach(source IN LISTS ARGN)
    get_filename_component(folder ${source} DIRECTORY)
    if(NOT IS_ABSOLUTE ${source})
      string(MAKE_C_IDENTIFIER "${target}/${folder}" group)
      set_source_files_properties(${source} PROPERTIES UNITY_GROUP ${group})
    endif()
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ${TRIREME_UNITY} UNITY_BUILD_MODE GROUP)
endfunction()

# trireme_library(NAME SOURCES ... DEPS ... [TORCH]): one target per layer. TORCH: uses tensors (libtorch).
function(trireme_library name)
  cmake_parse_arguments(ARG "TORCH" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  trireme_unity(${name} ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS})
  if(ARG_TORCH)
    target_link_libraries(${name} PUBLIC trireme_torch)
    target_precompile_headers(${name} REUSE_FROM pch_tensor)
  else()
    target_precompile_headers(${name} REUSE_FROM pch_plain)
  endif()
endfunction()

# trireme_test(NAME SOURCES ... DEPS ... LABELS ... [TORCH] [MANUAL]): a GoogleTest binary that ctest runs as one test; MANUAL: only built.
function(trireme_test name)
  cmake_parse_arguments(ARG "TORCH;MANUAL" "" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  trireme_unity(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest GTest::gtest_main)
  if(ARG_TORCH)
    target_precompile_headers(${name} REUSE_FROM pch_tensor_test)
  else()
    target_precompile_headers(${name} REUSE_FROM pch_plain_test)
  endif()
  if(NOT ARG_MANUAL)
    add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    # testing::TempDir(): a folder of this build alone, as another checkout or user may test at the same time.
    file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/test_files/${name})
    set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 600 ENVIRONMENT TEST_TMPDIR=${CMAKE_BINARY_DIR}/test_files/${name}/)
  endif()
endfunction()
