"""Do the algorithms train, what do they cost, and how much memory do heads take?"""
