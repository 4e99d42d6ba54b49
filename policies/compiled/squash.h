/* tanh, to about 3e-7: a quotient of odd and even polynomials on [-9, 9], outside of which it is 1 in float. No
 * library's tanhf: that takes five times as long, and its last bit depends on the library. */
#ifndef FORESHARE_SQUASH_H
#define FORESHARE_SQUASH_H

static const float SQUASH_ODD[] = {-2.76076847742355e-16f, 2.00018790482477e-13f, -8.60467152213735e-11f,
                                   5.12229709037114e-08f,  1.48572235717979e-05f, 6.37261928875436e-04f,
                                   4.89352455891786e-03f};
static const float SQUASH_EVEN[] = {1.19825839466702e-06f, 1.18534705686654e-04f, 2.26843463243900e-03f,
                                    4.89352518554385e-03f};
static const float SQUASH_REACH = 9.0f;

#endif
