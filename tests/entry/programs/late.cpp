// A static object whose constructor must run, since no compiler knows the pid.
#include <unistd.h>

struct Late {
    unsigned long value;
    Late() : value(getpid() > 0 ? 43 : 0) {}
};

static Late late;

extern "C" unsigned long late_cpp() { return late.value; }
