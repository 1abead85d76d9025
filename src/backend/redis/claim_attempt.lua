-- Writes a digest where there is none or another one. Older workers wrote shorter values, which stay.
local claimed = redis.call('GET', KEYS[1])
if claimed and (claimed == ARGV[1] or #claimed < #ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
