# format, format-check and lint: one configuration each (.clang-format, .clang-tidy), warnings are errors.
file(GLOB_RECURSE POISE_SOURCES CONFIGURE_DEPENDS kernels/*.[ch] kernels/*.cu common/*.[ch] learner/*.[ch] rollout/*.[ch] launch/*.[ch]
     tests/*.[ch] tests/*.cu)
find_program(CLANG_FORMAT clang-format)
find_program(RUN_CLANG_TIDY NAMES run-clang-tidy run-clang-tidy-14)
if(CLANG_FORMAT)
  add_custom_target(format COMMAND ${CLANG_FORMAT} -i ${POISE_SOURCES} WORKING_DIRECTORY ${POISE_ROOT})
  add_custom_target(format-check COMMAND ${CLANG_FORMAT} --dry-run --Werror ${POISE_SOURCES}
                    WORKING_DIRECTORY ${POISE_ROOT})
endif()
if(RUN_CLANG_TIDY)
  add_custom_target(lint COMMAND ${RUN_CLANG_TIDY} -quiet -extra-arg=-DPOISE_STATIC_ANALYSIS -p ${CMAKE_BINARY_DIR}
                            "(kernels|common|learner|rollout|launch)/.*\\.c$"
                    WORKING_DIRECTORY ${POISE_ROOT})
endif()
