// The activations of activation.h as plainly as they can be said, in double: for the specifications of the operators.
#pragma once
#include "base/activation.h"

namespace graphopt {

double activation_reference(double v, const Epilogue& epilogue);

}  // namespace graphopt
