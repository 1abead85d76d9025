-- Acquires or renews the lease for sealing, and appends a seal if it is the next in the chain.
-- KEYS[1] the seals
-- KEYS[2] the lease's holder
-- ARGV    holder, lease in ms, approximate limit of seals, and optionally a seal: number, last entry,
--         number of entries, mac
-- Returns 'held' when another holder has the lease; otherwise 'yours' and the newest seal.
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then
  return { 'held' }
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])

local function newest()
  local seal = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', '1')[1]
  if not seal then
    return '0', { 'upto', '', 'count', '0', 'mac', '' }
  end
  return string.match(seal[1], '^%d+'), seal[2]
end
if ARGV[4] and tonumber(ARGV[4]) == tonumber((newest())) + 1 then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], ARGV[4] .. '-1',
    'upto', ARGV[5], 'count', ARGV[6], 'mac', ARGV[7])
end
local number, fields = newest()
return { 'yours', number, fields[2], fields[4], fields[6] }
