#include "trainer/main.h"

int main(int argc, char** argv) { return trireme::Main(argc, argv, trireme::Extensions()); }
