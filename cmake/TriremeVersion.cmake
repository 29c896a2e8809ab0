# trireme_version(VARIABLE): sets VARIABLE to a source file that defines trireme::kVersion (launch/base/version.h): PROJECT_VERSION and, in brackets, the commit.
# Every build asks git again, but writes the file only if the answer changed, so that a new commit recompiles this one file.
#
# As a script (cmake -P) it is what the build runs: -DSOURCE=FOLDER -DVERSION=X.Y.Z -DOUTPUT=FILE.
function(trireme_version variable)
  set(output ${CMAKE_BINARY_DIR}/generated/version.cc)
  set(command ${CMAKE_COMMAND} -DSOURCE=${CMAKE_SOURCE_DIR} -DVERSION=${PROJECT_VERSION} -DOUTPUT=${output}
    -P ${CMAKE_SOURCE_DIR}/cmake/TriremeVersion.cmake)
  add_custom_target(trireme_version_file COMMAND ${command} BYPRODUCTS ${output} COMMENT "Asking git for the version" VERBATIM)
  set_source_files_properties(${output} PROPERTIES GENERATED TRUE SKIP_PRECOMPILE_HEADERS TRUE)
  set(${variable} ${output} PARENT_SCOPE)
endfunction()

if(NOT CMAKE_SCRIPT_MODE_FILE)
  return()
endif()

# A source tree that was unpacked inside someone else's repository has not that repository's commit: the prefix must be empty.
set(revision "built without git")
find_program(git git)
if(git)
  execute_process(COMMAND ${git} -C ${SOURCE} rev-parse --show-prefix
    RESULT_VARIABLE failed OUTPUT_VARIABLE prefix OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(NOT failed AND prefix STREQUAL "")
    execute_process(COMMAND ${git} -C ${SOURCE} describe --always --abbrev=12 --exclude=* --dirty=+changes
      RESULT_VARIABLE failed OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(NOT failed)
      set(revision ${found})
    endif()
  endif()
endif()

set(text "#include \"launch/base/version.h\"\n\nnamespace trireme {\n\nconst char* const kVersion = \"${VERSION} (${revision})\";\n\n}  // namespace trireme\n")
set(existing "")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} existing)
endif()
if(NOT text STREQUAL existing)
  file(WRITE ${OUTPUT} "${text}")
endif()
