"""What looks at a drafted version and decides: may it become the head?"""
