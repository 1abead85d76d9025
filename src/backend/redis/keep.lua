#!lua
-- Says how long these keys are kept from now on.
-- KEYS    any
-- ARGV    seconds
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ARGV[1])
end
return #KEYS
