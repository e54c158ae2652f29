#include "races.h"
